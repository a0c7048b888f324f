"""Visual prompt tuning against its equations written out here, and which blocks get prompts."""

import pytest
import torch

from smidgen.errors import SmidgenError, UsageError
from smidgen.methods.configs import VPTConfig
from tests.methods.equations import assert_same_output_and_gradients, dit
from tests.tiny.bases import NEW_CLASSES, law_base
from tests.tiny.deltas import tiny_delta, trained_tensors
from tests.tiny.hosts import TINY_HOSTS, all_labels


def _run(delta, base):
    inputs = TINY_HOSTS["dit"].inputs(all_labels(NEW_CLASSES))
    with delta.attach(base.denoiser):
        output = base.denoiser(*inputs)
    final = "final_layer.copy."
    tensors = trained_tensors(delta)
    copies = {
        f"final_layer.{name.removeprefix(final)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(final)
    }
    weights = dict(base.denoiser.state_dict()) | copies
    return tensors, weights, inputs, output


def _before(prompt, h):
    return torch.cat([prompt.reshape(1, -1, h.shape[-1]).expand(len(h), -1, -1), h], dim=1)


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_deep_prompts_are_new_in_every_block(num_tokens):
    base = law_base("dit")
    delta = tiny_delta(base, "vpt", tokens=num_tokens, blocks="all")
    d, weights, inputs, output = _run(delta, base)
    prompts = [value for name, value in d.items() if name.startswith("blocks.")]
    assert [prompt.numel() for prompt in prompts] == 2 * [num_tokens * 16]
    expected = dit(
        weights,
        d["label_table.rows"],
        *inputs,
        enter=lambda n, h: _before(prompts[n], h),
        leave=lambda n, h: h[:, num_tokens:],
    )
    assert_same_output_and_gradients(delta, output, expected)


def test_shallow_prompts_pass_through_all_blocks():
    base = law_base("dit")
    delta = tiny_delta(base, "vpt", depth="shallow", tokens=2)
    d, weights, inputs, output = _run(delta, base)
    (prompt,) = (value for name, value in d.items() if name.startswith("prompt."))
    expected = dit(
        weights,
        d["label_table.rows"],
        *inputs,
        enter=lambda n, h: _before(prompt, h) if n == 0 else h,
        leave=lambda n, h: h[:, 2:] if n == 1 else h,
    )
    assert_same_output_and_gradients(delta, output, expected)


def test_a_range_chooses_the_blocks_and_the_final_layer_can_stay_frozen():
    delta = tiny_delta(law_base("dit"), "vpt", blocks="2-2", final_layer=False)
    assert set(delta.edits) == {"blocks.1.prompt", "label_table"}


def test_prompts_start_at_random_and_the_final_layer_as_the_base_s():
    base = law_base("dit")
    tensors = trained_tensors(tiny_delta(base, "vpt", std=0.0, tokens=400))
    prompt = next(value for name, value in tensors.items() if name.startswith("blocks.0."))
    assert prompt.detach().std() == pytest.approx(0.02, rel=5 / (2 * 6400) ** 0.5)
    for name, value in base.denoiser.final_layer.state_dict().items():
        assert torch.equal(tensors[f"final_layer.copy.{name}"], value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": "middle"}, "expected one of: deep, shallow"),
        ({"tokens": 0}, "at least 1"),
        ({"blocks": "some"}, 'expected "auto", "all" or a range'),
        ({"depth": "shallow", "blocks": "1-2"}, "pass through all blocks"),
    ],
)
def test_nonsense_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        VPTConfig(**options)


def test_a_range_beyond_the_blocks_is_refused():
    with pytest.raises(UsageError, match="blocks 1-2"):
        tiny_delta(law_base("dit"), "vpt", blocks="1-5")


def test_shallow_prompts_are_refused_where_blocks_change_the_resolution():
    with pytest.raises(SmidgenError, match=r"unet base change the resolution .*use depth deep"):
        tiny_delta(law_base("unet"), "vpt", (), depth="shallow")
