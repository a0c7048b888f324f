"""The adapter's 20 places against blocks written out with the taps in the open, and its options."""

import copy
import math
from types import MethodType

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch.nn import functional

from smidgen.errors import SmidgenError, UsageError
from smidgen.methods.configs import LEGAL, AdapterConfig, check_pair
from tests.methods.equations import assert_same_output_and_gradients, dit
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta, trained_tensors
from tests.tiny.hosts import TINY_HOSTS, all_labels

TRANSFORMER_PAIRS = [
    ("SA_in", "SA_in"), ("SA_in", "CA_in"), ("SA_in", "FFN_in"), ("SA_in", "Trans_out"),
    ("SA_out", "CA_in"), ("SA_out", "FFN_in"), ("SA_out", "Trans_out"),
    ("CA_in", "CA_in"), ("CA_in", "FFN_in"), ("CA_in", "Trans_out"),
    ("CA_out", "FFN_in"), ("CA_out", "Trans_out"),
    ("FFN_in", "FFN_in"), ("FFN_in", "Trans_out"),
    ("FFN_out", "Trans_out"),
    ("Trans_out", "Trans_out"),
    ("CA_c", "CA_c"),
]  # fmt: skip
RESIDUAL_PAIRS = [("Res_in", "Res_in"), ("Res_in", "Res_out"), ("Res_out", "Res_out")]
SCALE = 0.5


class Flow:
    """The tensors of a block by position; what is read at one is added, adapted, at the other."""

    def __init__(self, read, write, adapter):
        self.read, self.write, self.adapter = read, write, adapter
        self.tensors = {}

    def at(self, place, tensor):
        self.tensors[place] = tensor
        if place == self.write:
            tensor = tensor + SCALE * self.adapter(self.tensors[self.read])
        return tensor


def _bottleneck(d, name, h):
    h = (h @ d[f"{name}.down.weight"].T + d[f"{name}.down.bias"]).clamp(min=0)
    return h @ d[f"{name}.up.weight"].T + d[f"{name}.up.bias"]


def _convolutions(d, name, h):
    """GroupNorm - SiLU - Conv3x3 - ReLU - Conv3x3; as many groups as divide 32 and the channels."""
    batch, channels, *size = h.shape
    groups = h.reshape(batch, math.gcd(32, channels), -1)
    groups = (groups - groups.mean(-1, keepdim=True)) / (
        groups.var(-1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    h = groups.reshape(batch, channels, *size) * d[f"{name}.norm.weight"].view(-1, 1, 1)
    h = h + d[f"{name}.norm.bias"].view(-1, 1, 1)
    h = h / (1 + (-h).exp())
    h = functional.conv2d(h, d[f"{name}.down.weight"], d[f"{name}.down.bias"], padding=1)
    h = h.clamp(min=0)
    return functional.conv2d(h, d[f"{name}.up.weight"], d[f"{name}.up.bias"], padding=1)


def _open_transformer(flow):
    def forward(self, hidden_states, attention_mask=None, encoder_hidden_states=None, **others):
        x = flow.at("SA_in", hidden_states)
        x = flow.at("CA_in", flow.at("SA_out", self.attn1(self.norm1(x))) + x)
        text = flow.at("CA_c", encoder_hidden_states)
        attended = self.attn2(self.norm2(x), encoder_hidden_states=text)
        x = flow.at("FFN_in", flow.at("CA_out", attended) + x)
        return flow.at("Trans_out", flow.at("FFN_out", self.ff(self.norm3(x))) + x)

    return forward


def _open_residual(flow):
    def forward(self, input_tensor, temb, *arguments, **others):
        x = flow.at("Res_in", input_tensor)
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time_emb_proj(functional.silu(temb))[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        skip = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return flow.at("Res_out", skip + h)

    return forward


def _reference(model, tensors, read, write):
    """A copy of the UNet with its transformer or residual blocks written out."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        adapter = f"{name}.adapter"
        if type(module) is BasicTransformerBlock and read != "Res_in" and read != "Res_out":
            flow = Flow(read, write, lambda h, n=adapter: _bottleneck(tensors, n, h))
            module.forward = MethodType(_open_transformer(flow), module)
        if type(module) is ResnetBlock2D and read in ("Res_in", "Res_out"):
            flow = Flow(read, write, lambda h, n=adapter: _convolutions(tensors, n, h))
            module.forward = MethodType(_open_residual(flow), module)
    return model


@pytest.mark.parametrize(("read", "write"), TRANSFORMER_PAIRS + RESIDUAL_PAIRS)
def test_every_place_in_the_unet_equals_the_written_out_block(read, write):
    base = law_base("unet")
    options = {"input_position": read, "output_position": write, "width": 6, "scale": SCALE}
    delta = tiny_delta(base, "adapter", (), **options)
    inputs = TINY_HOSTS["unet"].inputs(all_labels(("one",)))
    kind = "residual" if read.startswith("Res") else "transformer"
    assert len(delta.edits) == sum(block.kind == kind for block in base.host.blocks) > 1
    with torch.no_grad():
        plain = _sample(base.denoiser(*inputs))
    with delta.attach(base.denoiser):
        output = _sample(base.denoiser(*inputs))
    assert not torch.allclose(output, plain)
    reference = _reference(base.denoiser, trained_tensors(delta), read, write)
    expected = _sample(reference(*inputs))
    assert_same_output_and_gradients(delta, output, expected, tolerance=1e-9)


def _sample(output):
    return output if isinstance(output, torch.Tensor) else output[0]


@pytest.mark.parametrize(
    ("read", "write"),
    [pair for pair in TRANSFORMER_PAIRS if not any(place.startswith("CA_") for place in pair)],
)
def test_every_place_in_the_dit_equals_the_equations(read, write):
    base = law_base("dit")
    options = {"input_position": read, "output_position": write, "width": 3, "scale": SCALE}
    delta = tiny_delta(base, "adapter", ("bee", "cow"), **options)
    inputs = TINY_HOSTS["dit"].inputs(all_labels(("bee", "cow")))
    d = trained_tensors(delta)
    flows = [
        Flow(read, write, lambda h, n=n: _bottleneck(d, f"blocks.{n}.adapter", h)) for n in range(2)
    ]
    with delta.attach(base.denoiser):
        output = base.denoiser(*inputs)
    expected = dit(
        base.denoiser.state_dict(),
        d["label_table.rows"],
        *inputs,
        enter=lambda n, h: flows[n].at("SA_in", h),
        attention=lambda n, read, h: flows[n].at("SA_out", h),
        before_feed_forward=lambda n, h: flows[n].at("FFN_in", h),
        feed_forward=lambda n, read, h: flows[n].at("FFN_out", h),
        leave=lambda n, h: flows[n].at("Trans_out", h),
    )
    assert_same_output_and_gradients(delta, output, expected)


def test_there_are_20_legal_pairs():
    pairs = {(read, write) for read, writes in LEGAL.items() for write in writes}
    assert pairs == {*TRANSFORMER_PAIRS, *RESIDUAL_PAIRS}
    assert len(pairs) == 20


@pytest.mark.parametrize(
    ("read", "write", "message"),
    [
        (
            "FFN_out",
            "CA_in",
            'input "FFN_out" comes after output "CA_in" in this block; '
            "choose the output from: Trans_out",
        ),
        (
            "CA_c",
            "FFN_in",
            'what is read at input "CA_c" cannot be added at output "FFN_in"; '
            "choose the output from: CA_c",
        ),
        (
            "Res_out",
            "Res_in",
            'input "Res_out" comes after output "Res_in" in this block; '
            "choose the output from: Res_out",
        ),
    ],
)
def test_an_illegal_pair_is_refused_with_the_legal_outputs(read, write, message):
    for attempt in (check_pair, lambda r, w: AdapterConfig(input_position=r, output_position=w)):
        with pytest.raises(UsageError) as refusal:
            attempt(read, write)
        assert str(refusal.value) == message


@pytest.mark.parametrize(
    ("host", "options", "expected"),
    [
        ("unet", {}, ("CA_out", "FFN_in")),
        ("dit", {}, ("SA_out", "FFN_in")),
        ("unet", {"input_position": "SA_out"}, ("SA_out", "CA_in")),
        ("unet", {"input_position": "Res_in"}, ("Res_in", "Res_in")),
        ("unet", {"output_position": "Trans_out"}, ("CA_out", "Trans_out")),
        ("unet", {"output_position": "CA_in"}, ("SA_out", "CA_in")),
        ("unet", {"output_position": "CA_c"}, ("CA_c", "CA_c")),
        ("dit", {"output_position": "SA_in"}, ("SA_in", "SA_in")),
    ],
)
def test_positions_left_open_are_the_recommended_or_the_nearest(host, options, expected):
    base = law_base(host)
    classes = ("bee",) if host == "dit" else ()
    given = dict(zip(("input_position", "output_position"), expected, strict=True))
    left_open = tiny_delta(base, "adapter", classes, **options)
    assert left_open.specs() == tiny_delta(base, "adapter", classes, **given).specs()


def test_a_position_that_the_base_lacks_is_refused_by_name():
    with pytest.raises(SmidgenError, match=r"dit base has no cross-attention.*: SA_in, SA_out"):
        tiny_delta(law_base("dit"), "adapter", ("bee",), input_position="CA_out")
    with pytest.raises(
        SmidgenError, match=r"output CA_in .* choose the output from: SA_in, FFN_in"
    ):
        tiny_delta(
            law_base("dit"), "adapter", ("bee",), input_position="SA_in", output_position="CA_in"
        )
    with pytest.raises(SmidgenError, match="input Res_in"):
        tiny_delta(law_base("dit"), "adapter", ("bee",), input_position="Res_in")
    for place in ("CA_in", "CA_c", "Res_in"):
        with pytest.raises(SmidgenError, match=rf"output {place} .*: SA_in, FFN_in, Trans_out$"):
            tiny_delta(law_base("dit"), "adapter", ("bee",), output_position=place)


@pytest.mark.parametrize("share", [0.01, 0.1])
@pytest.mark.parametrize("places", [{}, {"input_position": "Res_in"}], ids=["tokens", "images"])
def test_a_share_gives_the_nearest_width(share, places):
    base = law_base("unet")
    total = sum(parameter.numel() for parameter in base.denoiser.parameters())

    def distance(**options):
        delta = tiny_delta(base, "adapter", (), **places, **options)
        return abs(delta.num_parameters() - share * total), delta

    nearest, delta = distance(share=share)
    name = next(iter(delta.edits))
    width = trained_tensors(delta)[f"{name}.down.weight"].shape[0]
    assert all(distance(width=w)[0] >= nearest for w in (max(1, width - 1), width + 1))


def test_a_share_without_a_width_is_refused():
    with pytest.raises(UsageError, match=r"^share 1e-06 is .* of width 1 have [0-9,]+; give a"):
        tiny_delta(law_base("unet"), "adapter", (), share=1e-6)


@pytest.mark.parametrize("size", [{"width": 8}, {"share": 0.01}])
def test_one_layer_has_no_width_to_choose(size):
    with pytest.raises(UsageError, match="has no width to choose"):
        AdapterConfig(form="linear", **size)


def test_zero_starts_without_effect_and_pytorch_with_its_default_for_all():
    base = law_base("unet")
    inputs = TINY_HOSTS["unet"].inputs(all_labels(("one",)))
    with torch.no_grad():
        plain = _sample(base.denoiser(*inputs))
        for init in ("zero", "pytorch"):
            delta = tiny_delta(base, "adapter", (), std=0.0, up_init=init)
            with delta.attach(base.denoiser):
                output = _sample(base.denoiser(*inputs))
            assert torch.equal(output, plain) == (init == "zero")
            assert all(t.any() for name, t in trained_tensors(delta).items() if ".down." in name)
            ups = [t for name, t in trained_tensors(delta).items() if ".up." in name]
            assert all(bool(t.any()) == (init == "pytorch") for t in ups)


@pytest.mark.parametrize(
    "options",
    [
        {"input_position": "middle"},
        {"output_position": "SA_out"},
        {"activation": "tanh"},
        {"width": 0},
        {"share": 1.5},
        {"scale": 0.0},
        {"up_init": "ones"},
    ],
)
def test_nonsense_is_refused(options):
    (name,) = options
    with pytest.raises(UsageError, match=f"^{name} is "):
        AdapterConfig(**options)
