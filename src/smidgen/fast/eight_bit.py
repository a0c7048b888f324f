"""Products with frozen weights in numbers of 8 bit. R rows, K numbers summed over, E outputs.

Of a product a b the rows of a and the columns of b are rounded, each with a scale that takes its
largest number to the largest there is:

    (a b)_ij = s_i t_j sum_k round(a_ik / s_i) round(b_kj / t_j)

To whole numbers, int8 up to 127, whose sums of products are exact in int32; or, where a GPU
multiplies them, to floats of 8 bit (e4m3 of https://arxiv.org/abs/2209.05433: 4 bits of exponent, 3
of mantissa, up to 448), whose scales it applies as it adds. A float is off by up to 1/16 of itself,
a whole number by up to 1/254 of its row's largest: floats round a row without outliers more
coarsely, and one with outliers no worse.

Weights never change and are rounded once; activations and gradients in each product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from smidgen.errors import UsageError
from smidgen.fast.names import FrozenPrecision
from smidgen.models.dit import DiT

INT8, FLOAT8 = torch.int8, torch.float8_e4m3fn
MOST = {INT8: 127, FLOAT8: 448}  # of their numbers
HOPPER = (9, 0)  # the first compute capability with a scale for each row of floats of 8 bit
MULTIPLE = 16  # of both sides of a matrix of such
AT_ONCE = 256  # rows: what is made on the way stays in a cache, and is not fetched anew from memory
LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of a block; the rest is small


class Columns(NamedTuple):
    """A matrix in numbers of 8 bit, int8 by rows or floats by columns, as they are multiplied, and
    the scale of each of its columns.
    """

    numbers: Shaped[Tensor, "K E"]
    scales: Float[Tensor, "E"]


class EightBit(NamedTuple):
    """The weight of a linear for dy @ weight, and for h @ weight.T unless that stays exact."""

    backward: Columns
    forward: Columns | None


def eight_bit_linears(network: DiT, precision: FrozenPrecision) -> dict[nn.Linear, EightBit]:
    """The large linears of all blocks as `precision` wants them, in the numbers that their device
    multiplies, none for "exact".
    """
    if precision == "exact":
        return {}
    found: dict[nn.Linear, EightBit] = {}
    for block in network.blocks:
        for name in LINEARS:
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            weight = linear.weight.detach()
            kind = INT8 if any(side % MULTIPLE for side in weight.shape) else kind_of(weight.device)
            forward = columns(weight.t(), kind) if precision == "8bit" else None
            found[linear] = EightBit(columns(weight, kind), forward)
    return found


def kind_of(device: torch.device) -> torch.dtype:
    """The numbers of 8 bit in which a device multiplies: floats on GPUs since Hopper, else int8."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= HOPPER:
        return FLOAT8
    return INT8


def columns(matrix: Float[Tensor, "K E"], kind: torch.dtype = INT8) -> Columns:
    """Each column rounded with a scale of its own."""
    numbers, scales = _rounded(matrix.t(), kind)
    # cuBLAS takes floats of 8 bit with the numbers that are summed over beside each other
    numbers = numbers.t() if kind == FLOAT8 else numbers.t().contiguous()
    return Columns(numbers, scales.squeeze(1))


def product(rows: Float[Tensor, "... K"], matrix: Columns) -> Float[Tensor, "... E"]:
    """rows @ matrix, the rows rounded each with a scale of its own; in float32, of floats of 8 bit
    in bfloat16, as GPUs give it.
    """
    every = rows.flatten(0, -2)
    if matrix.numbers.dtype == FLOAT8:
        numbers, scales = _rounded(every, FLOAT8)
        out = torch._scaled_mm(
            numbers, matrix.numbers, scales, matrix.scales[None], out_dtype=torch.bfloat16
        )
        return out.unflatten(0, rows.shape[:-1])
    out = every.new_empty((len(every), len(matrix.scales)), dtype=torch.float32)
    size = AT_ONCE if rows.device.type == "cpu" else len(every)
    for some, place in zip(every.split(size), out.split(size), strict=True):
        numbers, scales = _rounded(some, INT8)
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


def _rounded(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Numbers of this kind, and float32 scales (R, 1)."""
    buffer = rows.float().abs()
    scales = buffer.amax(1, keepdim=True).clamp_(min=1e-30).div_(MOST[kind])
    torch.div(rows, scales, out=buffer)
    return (buffer if kind.is_floating_point else buffer.round_()).to(kind), scales
