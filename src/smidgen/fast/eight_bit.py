"""Products with frozen weights in numbers of 8 bit. R rows, K numbers summed over, E outputs.

Of a product a b the rows of a and the columns of b are rounded to int8, each with a scale, its
largest number / 127; sums of products of such are exact in int32:

    (a b)_ij = s_i t_j sum_k round(a_ik / s_i) round(b_kj / t_j)

Weights never change and are rounded once; activations and gradients in each product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from smidgen.errors import UsageError
from smidgen.fast.names import FrozenPrecision
from smidgen.models.dit import DiT

MOST = 127
AT_ONCE = 256  # rows: what is made on the way stays in a cache, and is not fetched anew from memory
LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of a block; the rest is small


class Columns(NamedTuple):
    """A matrix as int8 numbers and the scale of each of its columns."""

    numbers: Int8[Tensor, "K E"]
    scales: Float[Tensor, "E"]


class EightBit(NamedTuple):
    """The weight of a linear for dy @ weight, and for h @ weight.T unless that stays exact."""

    backward: Columns
    forward: Columns | None


def eight_bit_linears(network: DiT, precision: FrozenPrecision) -> dict[nn.Linear, EightBit]:
    """The large linears of all blocks as `precision` wants them, none for "exact"."""
    if precision == "exact":
        return {}
    found: dict[nn.Linear, EightBit] = {}
    for block in network.blocks:
        for name in LINEARS:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            weight = linear.weight.detach()
            forward = columns(weight.t()) if precision == "8bit" else None
            found[linear] = EightBit(columns(weight), forward)
    return found


def columns(matrix: Float[Tensor, "K E"]) -> Columns:
    """Each column rounded with a scale of its own."""
    numbers, scales = _rounded(matrix.t())
    return Columns(numbers.t().contiguous(), scales.squeeze(1))


def product(rows: Float[Tensor, "... K"], matrix: Columns) -> Float[Tensor, "... E"]:
    """rows @ matrix in float32, the rows rounded each with a scale of its own."""
    every = rows.flatten(0, -2)
    out = every.new_empty((len(every), len(matrix.scales)), dtype=torch.float32)
    size = AT_ONCE if rows.device.type == "cpu" else len(every)
    for some, place in zip(every.split(size), out.split(size), strict=True):
        numbers, scales = _rounded(some)
        torch.mul(torch._int_mm(numbers, matrix.numbers), scales, out=place).mul_(matrix.scales)
    return out.unflatten(0, rows.shape[:-1])


def check_eight_bit(device: torch.device) -> None:
    """Raises: UsageError where products of int8 are slower than those of float32."""
    if device.type == "cuda" or (device.type == "cpu" and has_int8()):
        return
    raise UsageError(
        "frozen_precision in 8 bit needs a CUDA device or a CPU with AVX-512 VNNI or AMX; others "
        "multiply int8 many times slower than float32: leave it out"
    )


def has_int8() -> bool:
    """Whether this processor multiplies vectors or matrices of int8."""
    return torch.cpu._is_vnni_supported() or torch.cpu._is_amx_tile_supported()


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """int8 numbers, and float32 scales (R, 1)."""
    buffer = rows.float().abs()
    scales = buffer.amax(1, keepdim=True).clamp_(min=1e-30).div_(MOST)
    return torch.div(rows, scales, out=buffer).round_().to(torch.int8), scales
