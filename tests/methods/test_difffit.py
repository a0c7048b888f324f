"""DiffFit against its equations written out here, and what its options mean."""

import copy
import math

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from smidgen.errors import SmidgenError, UsageError
from smidgen.methods.configs import DiffFitConfig
from smidgen.methods.difffit import chosen_blocks
from tests.methods.equations import assert_same_output_and_gradients
from tests.tiny.bases import NEW_CLASSES, base_of, law_base
from tests.tiny.deltas import tiny_delta, trained_tensors
from tests.tiny.hosts import TINY_HOSTS, all_labels

EVERY_GAMMA = ("block", "qkv", "proj", "final", "patch", "time")


def _reference(
    w: dict[str, Tensor], d: dict[str, Tensor], x, t, y, *, depth, heads, patch
) -> Tensor:
    """A DiT with DiffFit: `w` the base's tensors, `d` the trained ones by name."""

    def linear(name, h):
        bias = w[f"{name}.bias"] + d[f"{name}.bias.offset"]
        return h @ w[f"{name}.weight"].flatten(1).T + bias

    def gamma(name):
        return d.get(f"{name}.gamma.gain", 1.0)

    def norm(name, h):
        h = h - h.mean(-1, keepdim=True)
        h = h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return h * d[f"{name}.weight.gain"] + d[f"{name}.bias.offset"]

    def silu(h):
        return h / (1 + (-h).exp())

    def gelu(h):
        return h * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))

    batch, channels, size, _ = x.shape
    grid = size // patch
    h = x.reshape(batch, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    h = linear("x_embedder.proj", h.reshape(batch, grid * grid, -1)) * gamma("x_embedder.proj")
    h = h + w["pos_embed"]
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)[None]
    features = torch.cat([angles.cos(), angles.sin()], -1).double()
    time = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", features)))
    c = silu(time * gamma("t_embedder.mlp.2") + d["label_table.rows"][y])
    for n in range(depth):
        block = f"blocks.{n}"
        modulation = linear(f"{block}.adaLN_modulation.1", c)[:, None].chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        a = norm(f"{block}.norm1", h) * (1 + scale1) + shift1
        qkv = linear(f"{block}.attn.qkv", a) * gamma(f"{block}.attn.qkv")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        a = linear(f"{block}.attn.proj", (weights @ v).transpose(1, 2).flatten(2))
        a = a * gamma(f"{block}.attn.proj") * gamma(f"{block}.attn")
        h = h + gate1 * a
        f = norm(f"{block}.norm2", h) * (1 + scale2) + shift2
        f = linear(f"{block}.mlp.fc2", gelu(linear(f"{block}.mlp.fc1", f)))
        h = h + gate2 * f * gamma(f"{block}.mlp")
    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    h = norm("final_layer.norm_final", h) * (1 + scale) + shift
    h = linear("final_layer.linear", h) * gamma("final_layer.linear")
    h = h.reshape(batch, grid, grid, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
    return h.reshape(batch, -1, size, size)


@pytest.mark.parametrize(
    "config",
    [{}, {"gammas": EVERY_GAMMA, "blocks": "all"}, {"gammas": EVERY_GAMMA, "blocks": "2-2"}],
    ids=["default", "everything", "last-blocks"],
)
def test_outputs_and_gradients_equal_the_equations(config):
    base = law_base("dit")
    delta = tiny_delta(base, "difffit", **config)
    inputs = TINY_HOSTS["dit"].inputs(all_labels(NEW_CLASSES))
    with delta.attach(base.denoiser):
        output = base.denoiser(*inputs)
    tensors = trained_tensors(delta)
    expected = _reference(base.denoiser.state_dict(), tensors, *inputs, depth=2, heads=2, patch=2)
    # the timestep's features are float32 in both, computed in another order
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)

    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5)).double()
    ours = torch.autograd.grad((output * direction).sum(), list(tensors.values()))
    theirs = torch.autograd.grad((expected * direction).sum(), list(tensors.values()))
    for name, one, other in zip(tensors, ours, theirs, strict=True):
        atol = 1e-5 * other.abs().max().item()
        torch.testing.assert_close(one, other, atol=atol, rtol=1e-5, msg=f"gradient of {name}")


def _sub_layers(model):
    """The sub-layers of a UNet whose outputs the gammas multiply."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if type(module) is ResnetBlock2D:
            yield f"{name}.conv2"
        elif last in ("attn1", "attn2", "ff"):
            yield name


def test_on_a_unet_outputs_and_gradients_equal_changed_parameters_and_written_gammas():
    base = law_base("unet")
    delta = tiny_delta(base, "difffit", ())
    d = trained_tensors(delta)
    inputs = TINY_HOSTS["unet"].inputs(all_labels(("one",)))
    with delta.attach(base.denoiser):
        output = base.denoiser(*inputs, return_dict=False)[0]
    parameters = {}
    for name, value in base.denoiser.named_parameters():
        module, leaf = name.rpartition(".")[::2]
        if isinstance(base.denoiser.get_submodule(module), nn.LayerNorm | nn.GroupNorm):
            # any weight and bias: (w g) z + (b g + offset)
            value = value * d[f"{module}.weight.gain"]
        parameters[name] = value + d[f"{name}.offset"] if leaf == "bias" else value
    reference = copy.deepcopy(base.denoiser)
    gammas = list(_sub_layers(reference))
    for name in gammas:
        axis = (slice(None), None, None) if name.endswith("conv2") else ...
        gain = d[f"{name}.gamma.gain"][axis]
        reference.get_submodule(name).register_forward_hook(lambda m, x, y, gain=gain: y * gain)
    expected = torch.func.functional_call(
        reference, parameters, inputs, {"return_dict": False}, tie_weights=False
    )[0]
    assert {name for name in delta.edits if name.endswith(".gamma")} == {
        f"{name}.gamma" for name in gammas
    }
    assert_same_output_and_gradients(delta, output, expected, tolerance=1e-9)


def test_the_default_of_a_unet_is_every_bias_norm_weight_and_sub_layer():
    base = law_base("unet")
    count = tiny_delta(base, "difffit", ()).num_parameters()
    expected = 0
    for module in base.denoiser.modules():
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            expected += module.weight.numel()
        expected += getattr(getattr(module, "bias", None), "numel", lambda: 0)()
    for name in _sub_layers(base.denoiser):
        module = base.denoiser.get_submodule(name)
        last = {"attn1": "to_out.0", "attn2": "to_out.0", "ff": "net.2", "conv2": ""}
        linear = module.get_submodule(last[name.rpartition(".")[2]])
        expected += linear.weight.shape[0]
    assert count == expected


def test_a_gamma_with_no_place_in_the_base_is_refused():
    model = nn.Sequential(nn.Linear(2, 2)).requires_grad_(False)
    base = base_of(model)
    with pytest.raises(SmidgenError, match='gamma "block" has no place in a derived base'):
        tiny_delta(base, "difffit", gammas=("block",))
    with pytest.raises(SmidgenError, match=r'no tap "final\.out"'):
        tiny_delta(base, "difffit", gammas=("final",))
    assert set(tiny_delta(base, "difffit").edits) == {"0.bias"}


def test_the_default_covers_the_first_half_of_the_blocks():
    assert chosen_blocks("half", 28) == range(14)
    assert chosen_blocks("half", 12) == range(6)
    assert chosen_blocks("half", 3) == range(2)
    assert chosen_blocks("half", 1) == range(1)
    assert chosen_blocks("auto", 28) == range(14)
    assert chosen_blocks("auto", 28, half=False) == chosen_blocks("all", 28) == range(28)


def test_a_range_counts_from_one_and_includes_both_ends():
    assert chosen_blocks("15-28", 28) == range(14, 28)
    assert chosen_blocks("3-3", 28) == range(2, 3)
    assert chosen_blocks("28-15", 28) == chosen_blocks("15-28", 28)
    assert chosen_blocks("all", 28) == range(28)


def test_gammas_sit_in_the_chosen_blocks_only():
    delta = tiny_delta(law_base("dit"), "difffit", blocks="2-2")
    gammas = {name for name in delta.edits if name.endswith(".gamma")}
    in_block = {f"blocks.1.{part}.gamma" for part in ("attn.qkv", "attn.proj", "attn", "mlp")}
    assert gammas == in_block | {"final_layer.linear.gamma"}


def test_biases_and_affines_can_be_left_out():
    delta = tiny_delta(
        law_base("dit"), "difffit", biases=False, layer_norm=False, gammas=("final",)
    )
    assert set(delta.edits) == {"label_table", "final_layer.linear.gamma"}


@pytest.mark.parametrize("blocks", ["", "0-3", "4-0", "7", "1-", "first", "1-3-5", "-1-3"])
def test_a_malformed_range_is_refused(blocks):
    with pytest.raises(UsageError, match="expected"):
        DiffFitConfig(blocks=blocks)


def test_a_range_beyond_the_depth_is_refused():
    with pytest.raises(UsageError, match="blocks 1-2"):
        tiny_delta(law_base("dit"), "difffit", blocks="2-3")


def test_unknown_and_repeated_gammas_are_refused():
    with pytest.raises(UsageError, match="choose from: block"):
        DiffFitConfig(gammas=("blocks",))
    with pytest.raises(UsageError, match="twice"):
        DiffFitConfig(gammas=("qkv", "qkv"))
