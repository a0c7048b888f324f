"""Weights of a network in 8 or 4 bit, as plain tensors in its modules: what is kept of each, and
beside it what that means (docs/decisions/0014-eight-bit-without-a-library.md and
0029-four-bit-in-the-blocks.md). How modules run with them is in widening.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.normal_float import packed, values_of_bytes
from smidgen.core.storage import computes_in, is_kept, keep, repeated_layers
from smidgen.core.widening import (
    CAST_BY_AUTOCAST,
    EIGHT_BIT,
    FOUR_BIT,
    PACKED,
    SCALE,
    VALUES,
    Quantised,
)

MOST = 127  # of the numbers of 8 bit

Kept = tuple[nn.Parameter, Mapping[str, Tensor]]  # in the place of a weight, and buffers beside it


@torch.no_grad()
def quantise(network: nn.Module, precision: Quantised) -> None:
    """`network` with weights in this precision, computing in what it does now. Everything else
    stays as it is.

    "int8": those of all linears and convolutions, as round(weight / scale) with a float32 scale for
    each of their output channels, its largest weight / 127. "nf4": those of the linears and
    convolutions in repeated blocks, as in normal_float.py; their parameters are left with a shape
    and no numbers.
    """
    compute, made = computes_in(network), MADE[precision]
    if precision == "int8":
        layers = [module for module in network.modules() if isinstance(module, CAST_BY_AUTOCAST)]
    else:
        layers = list(repeated_layers(network))
    done: dict[Tensor, Kept] = {}  # of what modules share
    for module in layers:
        own: Any = module.weight
        if own not in done:
            done[own] = made(own)
        module.weight, buffers = done[own]
        for name, buffer in buffers.items():
            module.register_buffer(name, buffer, persistent=False)
    if not is_kept(network):
        keep(network, compute)


def in_eight_bit(weight: Tensor) -> Kept:
    """A number of 8 bit for each of its own, and the scales."""
    wide = weight.float()
    scale = wide.abs().amax(dim=tuple(range(1, wide.ndim)), keepdim=True) / MOST
    scale.clamp_(min=torch.finfo(torch.float32).tiny)  # of a channel that is all 0
    whole = (wide / scale).round_().to(EIGHT_BIT)
    return nn.Parameter(whole, requires_grad=False), {SCALE: scale}


def in_four_bit(weight: Tensor) -> Kept:
    """Its shape alone, the bytes of its numbers, and what the bytes stand for."""
    shape = torch.empty(weight.shape, dtype=FOUR_BIT, device="meta")
    values = values_of_bytes().to(weight.device)
    return nn.Parameter(shape, requires_grad=False), {PACKED: packed(weight), VALUES: values}


MADE: Mapping[Quantised, Callable[[Tensor], Kept]] = {"int8": in_eight_bit, "nf4": in_four_bit}
