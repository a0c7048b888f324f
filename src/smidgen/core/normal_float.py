"""NormalFloat of 4 bit (NF4), doubly quantised: numbers as bytes and back (Dettmers et al. 2023,
QLoRA, arXiv 2305.14314, section 3).

Numbers are in blocks of 64, each number the nearest of 16 levels times the scale of its block, its
largest number. These scales are whole numbers of 8 bit times the scale of their group of 256
blocks. n numbers in b blocks and g groups are one tensor of 4 g + b + 32 b bytes: the float32
scales of the groups, those of the blocks, and two levels in each byte, the first in its upper half.
Which modules of a network are kept so is in quantising.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional

BLOCK = 64  # numbers with one scale
GROUP = 256  # blocks whose scales have one scale
MOST = 255  # of the whole numbers in a byte


def levels() -> Float[Tensor, "16"]:
    """The levels, from -1 to 1: quantiles of a normal distribution, in equal steps of probability,
    8 of them up to 0 and 9 from 0, divided by the largest (section 3, appendix E).
    """
    tail = (1 / 32 + 1 / 30) / 2  # of probability beyond the outermost, which would be infinite
    below = torch.linspace(tail, 0.5, 8, dtype=torch.float64)
    above = torch.linspace(0.5, 1 - tail, 9, dtype=torch.float64)[1:]
    quantiles = torch.special.ndtri(torch.cat([below, above]))
    return (quantiles / quantiles[-1]).float()


def values_of_bytes() -> Int64[Tensor, "256"]:
    """The two levels that each byte stands for, as 8 bytes: what `unpacked` looks up."""
    return torch.cartesian_prod(levels(), levels()).view(torch.int64).view(-1)


def packed(numbers: Float[Tensor, "..."]) -> UInt8[Tensor, "bytes"]:
    """The bytes of these numbers, on their device."""
    b, g = _num_scales(numbers.numel())
    flat = numbers.detach().reshape(-1).float()
    blocks = functional.pad(flat, (0, b * BLOCK - len(flat))).view(b, BLOCK)
    largest = functional.pad(blocks.abs().amax(1), (0, g * GROUP - b)).view(g, GROUP)
    outer = largest.amax(1, keepdim=True) / MOST  # (g, 1)
    smallest = torch.finfo(torch.float32).tiny  # in the place of a scale that is 0
    inner = (largest / outer.clamp(min=smallest)).round_()
    scales = (inner * outer).view(-1, 1)[:b]
    between = levels().unfold(0, 2, 1).mean(1).to(flat.device)
    codes = torch.bucketize(blocks / scales.clamp(min=smallest), between, out_int32=True)
    pairs = codes.to(torch.uint8).view(-1, 2)
    parts = (
        outer.view(torch.uint8),
        inner.to(torch.uint8).view(-1)[:b],
        pairs[:, 0] * 16 + pairs[:, 1],
    )
    return torch.cat([part.reshape(-1) for part in parts])


def unpacked(
    data: UInt8[Tensor, "_"], shape: torch.Size, values: Int64[Tensor, "256"]
) -> Float[Tensor, "..."]:
    """The numbers of this shape in float32 from the first bytes of `data`; `values` are those of
    `values_of_bytes`, on the same device.
    """
    b, g = _num_scales(shape.numel())
    outer, inner, pairs, _ = data.tensor_split([4 * g, 4 * g + b, 4 * g + b + b * BLOCK // 2])
    scales = outer.view(torch.float32)[:, None].expand(g, GROUP).reshape(-1)[:b] * inner
    found = values.index_select(0, pairs.int()).view(torch.float32)
    numbers = found.view(b, BLOCK).mul_(scales[:, None])
    return numbers.view(-1)[: shape.numel()].view(shape)


def num_bytes(numel: int) -> int:
    """Of so many numbers, `packed`: 4.127 bit each and the rest of a block."""
    b, g = _num_scales(numel)
    return 4 * g + b + b * BLOCK // 2


def _num_scales(numel: int) -> tuple[int, int]:
    """Of blocks and of groups."""
    b = -(-numel // BLOCK)
    return b, -(-b // GROUP)
