"""Numbers as bytes of NormalFloat and back, against the definition and the published table."""

import math

import pytest
import torch

from smidgen.core.normal_float import levels, num_bytes, packed, unpacked, values_of_bytes

# QLoRA (arXiv 2305.14314), appendix E
TABLE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def defined(numbers):
    """What is left of numbers by the definition: 64 in a block, 256 blocks in a group."""
    flat = [float(number) for number in numbers.flatten()]
    blocks = [flat[start : start + 64] for start in range(0, len(flat), 64)]
    found = []
    for start in range(0, len(blocks), 256):
        group = blocks[start : start + 256]
        step = max(abs(number) for block in group for number in block) / 255
        for block in group:
            scale = round(max(map(abs, block)) / step) * step if step else 0.0
            found += [scale * min(TABLE, key=lambda q: abs(number - scale * q)) for number in block]
    return torch.tensor(found).view(numbers.shape)


def through(numbers):
    return unpacked(packed(numbers), numbers.shape, values_of_bytes())


def test_the_levels_are_those_of_the_paper():
    # their probability was rounded to .9677083, which moves levels by 2e-7
    torch.testing.assert_close(levels(), torch.tensor(TABLE), rtol=0, atol=2e-7)
    assert levels()[7] == 0


@pytest.mark.parametrize(
    "shape", [(1,), (64,), (65,), (3, 5, 7), (40, 64, 9), (256, 64), (257, 64)]
)
def test_numbers_become_what_the_definition_says(shape):
    generator = torch.Generator().manual_seed(math.prod(shape))
    numbers = torch.randn(shape, generator=generator)
    numbers *= torch.rand(shape[0], generator=generator).view(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(through(numbers), defined(numbers), rtol=1e-5, atol=0)


def test_levels_times_scales_stay_themselves():
    kept = (
        torch.tensor(TABLE).repeat(32).view(8, 64)
        * torch.tensor([255, 1, 2, 3, 100, 7, 9, 0])[:, None]
    )
    torch.testing.assert_close(through(kept), kept, rtol=1e-6, atol=0)
    assert not through(torch.zeros(3, 70)).any()


def test_the_bytes_are_counted_and_those_behind_them_ignored():
    for count, bytes_ in ((1, 4 + 1 + 32), (64, 37), (65, 70), (2**14, 4 + 256 + 2**13)):
        numbers = torch.linspace(-1, 1, count)
        assert len(packed(numbers)) == num_bytes(count) == bytes_
        longer = torch.cat([packed(numbers), torch.ones(9, dtype=torch.uint8)])
        assert torch.equal(unpacked(longer, numbers.shape, values_of_bytes()), through(numbers))
    assert 8 * num_bytes(2**24) / 2**24 == pytest.approx(
        4 + 8 / 64 + 32 / (64 * 256)
    )  # the paper's


def test_scales_in_8_bit_cost_a_normal_weight_next_to_nothing():
    blocks = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = (blocks / scales)[..., None].sub(levels()).abs().argmin(-1)
    kept = levels()[nearest] * scales, through(blocks)  # with exact scales, and with those in 8 bit
    exact, found = ((one - blocks).norm() / blocks.norm() for one in kept)
    assert 0.08 < exact < 0.11
    assert found < 1.005 * exact
