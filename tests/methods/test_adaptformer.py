"""AdaptFormer against its equations written out here."""

from dataclasses import replace

import pytest
import torch

from smidgen.errors import SmidgenError, UsageError
from smidgen.methods.configs import AdaptFormerConfig
from tests.methods.equations import assert_same_output_and_gradients, dit
from tests.tiny.bases import NEW_CLASSES, law_base
from tests.tiny.deltas import tiny_delta, trained_tensors
from tests.tiny.hosts import TINY_HOSTS, all_labels

# the norm before the feed-forward and the feed-forward, in a block of each host that knows its flow
FEED_FORWARDS = {
    "dit": ("norm2", "mlp"),
    "unet": ("norm3", "ff"),
    "pixart": ("norm2", "ff"),
    "sd3": ("norm2", "ff"),
    "flux": ("norm2", "ff"),
    "sana": ("norm2", "ff"),
    "flux2": ("norm2", "ff"),
    "qwen_image": ("img_norm2", "img_mlp"),
}


def _bottleneck(d, name, h):
    h = (h @ d[f"{name}.down.weight"].T + d[f"{name}.down.bias"]).clamp(min=0)
    return h @ d[f"{name}.up.weight"].T + d[f"{name}.up.bias"]


@pytest.mark.parametrize(
    ("form", "read"), [("parallel", "normed"), ("parallel", "stream"), ("sequential", "normed")]
)
def test_outputs_and_gradients_equal_the_equations(form, read):
    base = law_base("dit")
    delta = tiny_delta(base, "adaptformer", form=form, read=read, width=3, scale=0.7)
    inputs = TINY_HOSTS["dit"].inputs(all_labels(NEW_CLASSES))
    d = trained_tensors(delta)
    stream = {}

    def before_feed_forward(n, x):
        stream[n] = x
        return x

    def feed_forward(n, normed, output):
        h = {"parallel": normed, "sequential": output}[form]
        h = stream[n] if read == "stream" else h
        return output + 0.7 * _bottleneck(d, f"blocks.{n}.adaptformer", h)

    with delta.attach(base.denoiser):
        output = base.denoiser(*inputs)
    expected = dit(
        base.denoiser.state_dict(),
        d["label_table.rows"],
        *inputs,
        feed_forward=feed_forward,
        before_feed_forward=before_feed_forward,
    )
    # the timestep's features are float32 in both, computed in another order
    assert_same_output_and_gradients(delta, output, expected)


@pytest.mark.parametrize("host", FEED_FORWARDS)
def test_the_stream_is_what_enters_the_norm_before_the_feed_forward(host):
    base, tiny = law_base(host), TINY_HOSTS[host]
    delta = tiny_delta(base, "adaptformer", read="stream", width=3, scale=0.7)
    inputs = tiny.inputs(all_labels(NEW_CLASSES))
    with torch.no_grad(), delta.attach(base.denoiser):
        output = tiny.call(base.denoiser, *inputs)
    d, norm, feed = trained_tensors(delta), *FEED_FORWARDS[host]
    bottlenecks = [name for name in delta.edits if name != "label_table"]
    assert bottlenecks

    def open_block(name):
        block, seen = base.denoiser.get_submodule(name.removesuffix(".adaptformer")), {}

        def read(module, arguments):
            (seen["x"],) = arguments

        def add(module, arguments, y):
            z = 0.7 * _bottleneck(d, name, seen["x"])
            if y.ndim == 4:  # (B, N, C) -> (B, C, H, W), the rows of the image one by one
                z = z.reshape(len(y), *y.shape[2:], -1).permute(0, 3, 1, 2)
            return y + z

        block.get_submodule(norm).register_forward_pre_hook(read)
        block.get_submodule(feed).register_forward_hook(add)

    for name in bottlenecks:
        open_block(name)
    table = {"label_table": delta.edits["label_table"]} if base.host.has_labels else {}
    with torch.no_grad(), type(delta)(table, delta.provenance).attach(base.denoiser):
        expected = tiny.call(base.denoiser, *inputs)
    tiny_rounding = max(tiny.rounding, 1e-12)
    torch.testing.assert_close(output, expected, atol=tiny_rounding, rtol=tiny_rounding)
    normed = tiny_delta(base, "adaptformer", width=3, scale=0.7)
    assert normed.specs() != delta.specs()
    assert normed.num_parameters() == delta.num_parameters()


def test_a_host_that_does_not_name_the_stream_is_refused():
    base = law_base("dit")
    blocks = tuple(replace(block, positions={}) for block in base.host.blocks)
    base = replace(base, host=replace(base.host, blocks=blocks))
    assert tiny_delta(base, "adaptformer").edits
    with pytest.raises(SmidgenError, match=r"the host of dit does not name in blocks\.0; use read"):
        tiny_delta(base, "adaptformer", read="stream")


@pytest.mark.parametrize("read", ["normed", "stream"])
def test_the_start_is_the_authors_with_biases_of_zero(read):
    delta = tiny_delta(law_base("dit"), "adaptformer", std=0.0, read=read)
    options = {"form": "parallel", "read": read, "width": 64, "scale": 0.1}
    assert delta.provenance.config == options
    tensors = trained_tensors(delta)
    assert tensors["blocks.1.adaptformer.down.weight"].shape == (64, 16)
    for block in range(2):
        name = f"blocks.{block}.adaptformer"
        for zero in ("down.bias", "up.weight", "up.bias"):
            assert not tensors[f"{name}.{zero}"].any(), zero
        weight = tensors[f"{name}.down.weight"].detach()
        bound = 1 / 16**0.5  # kaiming uniform with a = sqrt(5): sqrt(6 / (1 + 5)) / sqrt(fan in)
        assert 0.95 * bound < weight.abs().max() <= bound
        assert weight.mean().abs() < 5 * bound / (3 * 1024) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "serial"}, "expected one of: parallel, sequential"),
        ({"read": "norm"}, "expected one of: normed, stream"),
        (
            {"form": "sequential", "read": "stream"},
            "the sequential form reads what the feed-forward",
        ),
        ({"width": 0}, "at least 1"),
        ({"scale": float("nan")}, "scale is nan"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        AdaptFormerConfig(**options)
