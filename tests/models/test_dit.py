"""The DiT: parameter counts, positions, timestep features, initialisation, checkpointing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from smidgen.models.dit import DiT, DiTConfig, attend, position_table, preset
from tests.models.conftest import TINY, inputs
from tests.tiny.networks import dit

FAMILY = {"S": (384, 12), "B": (768, 12), "L": (1024, 24), "XL": (1152, 28)}


def closed_form(width: int, depth: int, patch: int, image_size: int, num_classes: int) -> int:
    tokens = (image_size // patch) ** 2
    patches = patch**2 * 4 * width + width
    times = 256 * width + width + width**2 + width
    labels = (num_classes + 1) * width
    attention = 3 * width**2 + 3 * width + width**2 + width
    feed_forward = 2 * 4 * width**2 + 4 * width + width
    block = attention + feed_forward + 6 * width**2 + 6 * width
    last = 2 * width**2 + 2 * width + patch**2 * 8 * width + patch**2 * 8
    return patches + times + labels + tokens * width + depth * block + last


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", FAMILY)
def test_parameter_counts_of_the_family_follow_the_closed_form(size, patch):
    with torch.device("meta"):
        model = DiT(preset(f"DiT-{size}/{patch}", image_size=64, num_classes=101))
    count = sum(p.numel() for p in model.parameters())
    assert count == closed_form(*FAMILY[size], patch, 64, 101)


def test_xl_2_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = DiT(preset("DiT-XL/2"))
    assert sum(p.numel() for p in model.parameters()) == 675_129_632


@pytest.mark.parametrize("name", ["DiT-M/2", "DiT-XL/3", "XL/2", "DiT-XL", "dit-xl/2"])
def test_unknown_members_are_refused(name):
    with pytest.raises(ValueError, match="unknown architecture"):
        preset(name)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"image_size": 5}, {"width": 30}, {"depth": 0}, {"num_heads": 5}, {"image_size": -2}),
        *({"image_width": 5}, {"image_width": 0}, {"spacing": (1.0, 0.0)}),
    ],
)
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ValueError, match=r"is|must be"):
        DiTConfig(**{"image_size": 4, "width": 32, "depth": 1, "num_heads": 4, **wrong})


@pytest.mark.parametrize(
    ("width", "grid", "spacing"),
    [(16, (3, 3), (1.0, 1.0)), (384, (16, 16), (1.0, 1.0)), (16, (2, 5), (0.5, 1.5))],
)
def test_position_table_is_sines_and_cosines_of_column_then_row(width, grid, spacing):
    quarter, (rows, columns) = width // 4, grid
    expected = np.zeros((rows * columns, width))
    for row in range(rows):
        for column in range(columns):
            down, across = row * spacing[0], column * spacing[1]
            for k in range(quarter):
                frequency = 1 / 10000 ** (k / quarter)
                expected[
                    row * columns + column, [k, quarter + k, 2 * quarter + k, 3 * quarter + k]
                ] = [
                    math.sin(across * frequency),
                    math.cos(across * frequency),
                    math.sin(down * frequency),
                    math.cos(down * frequency),
                ]
    # rounded once to float32
    table = position_table(width, grid, spacing)[0]
    np.testing.assert_allclose(table.numpy(), expected, atol=6e-8)


def test_an_image_that_is_no_square_is_put_together_from_the_patches_that_it_was_cut_into():
    config = replace(TINY, image_size=4, image_width=10)
    model = dit(config)
    assert config.grid == (2, 5)
    x = torch.randn(2, 4, 4, 10, generator=torch.Generator().manual_seed(0))
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  # (B, C, h, w, p, q)
    tokens = patches.permute(0, 2, 3, 4, 5, 1).reshape(2, 10, 16)
    assert torch.equal(model.unpatchify(tokens), x)
    assert model(x, torch.tensor([0, 999]), torch.tensor([0, 1])).shape == (2, 8, 4, 10)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_timestep_features_are_128_cosines_then_sines(shift):
    model = dit(DiTConfig(image_size=4, width=32, depth=1, num_heads=4, frequency_shift=shift))
    t = torch.tensor([0, 1, 500, 999])
    seen = []
    handle = model.t_embedder.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.t_embedder(t, torch.float32)
    handle.remove()
    frequencies = np.exp(-np.log(10000) * np.arange(128) / (128 - shift))
    angles = t.numpy()[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    # float32 angles of up to 999 are off by up to 999 * 2^-23
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=2.5e-4)


def test_a_token_reaches_its_own_patch_of_the_output():
    """With every token's output its own index, the image shows the patches in reading order."""
    config = DiTConfig(
        image_size=6, patch_size=2, width=32, depth=1, num_heads=4, learn_sigma=False
    )
    model = dit(config)
    tokens = torch.arange(9.0)[None, :, None].expand(1, 9, 16)
    handle = model.final_layer.register_forward_hook(lambda *_: tokens)
    x, t, y = inputs(config, batch=1)
    output = model(x, t, y)
    handle.remove()
    expected = torch.arange(9.0).reshape(3, 3).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(output, expected.expand(1, 4, 6, 6))


def test_every_weight_matters():
    """Nothing is computed in vain: changing any parameter changes the output."""
    model = dit(TINY)
    x, t, y = inputs()
    reference = model(x, t, y)
    for name, parameter in model.named_parameters():
        before = parameter.clone()
        parameter.add_(torch.linspace(0.1, 0.5, parameter.numel()).view_as(parameter))
        if not name.endswith("qkv.bias"):
            assert not torch.allclose(model(x, t, y), reference), name
        parameter.copy_(before)


def test_fresh_initialisation_predicts_zero_and_is_reproducible():
    first, second = DiT(TINY), DiT(TINY)
    first.initialize(torch.Generator().manual_seed(3))
    second.initialize(torch.Generator().manual_seed(3))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    assert torch.equal(first.pos_embed, position_table(TINY.width, TINY.grid))
    x, t, y = inputs()
    assert torch.equal(first(x, t, y), torch.zeros(3, 8, 4, 4))
    assert first.blocks[0].attn.qkv.weight.std() > 0.01


def test_gradient_checkpointing_gives_the_same_gradients():
    def gradients(checkpointing: bool):
        model = dit(TINY).requires_grad_(True)
        model.gradient_checkpointing = checkpointing
        model(*inputs()).square().sum().backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain, recomputed = gradients(False), gradients(True)
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


def test_labels_and_times_of_one_image_do_not_touch_another():
    model = dit(TINY).double()
    x, t, y = inputs(dtype=torch.float64)
    together = model(x, t, y)
    apart = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", [16, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_and_its_gradients_are_those_of_the_formula(tokens, dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = torch.randn(4, 2, 3, tokens, 8, generator=generator).to(dtype)

    def gradients(attention, *inputs):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        mixed = attention(*leaves)
        return [mixed, *torch.autograd.grad(mixed, leaves, gradient.to(mixed.dtype))]

    def formula(q, k, v):
        return (q @ k.mT / 8**0.5).softmax(-1) @ v

    expected = gradients(formula, q.double(), k.double(), v.double())
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for found, exact in zip(gradients(attend, q, k, v), expected, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)
