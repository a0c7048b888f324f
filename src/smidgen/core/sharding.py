"""Weights of which each of several processes keeps a part: the parts come together while a module
runs, forwards and backwards, by the hooks that widen weights (widening.py). As they are frozen, no
gradients of them travel (docs/decisions/0024-sharding-without-fsdp.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.bringing import Bringing, Group
from smidgen.core.storage import bytes_of, computes_in, is_kept, keep, move, repeated_layers
from smidgen.core.widening import OUTSIDE, PACKED, PART, WIDENING


@torch.no_grad()
def shard(
    network: nn.Module, device: str | torch.device, group: Group, *, ahead: bool | None = None
) -> None:
    """`network` on `device` but for the weights of linears and convolutions in its repeated blocks,
    of each of which this process keeps a part, one of `group.count`. What is left of the parameter
    has a shape and no numbers. From now on all processes call the network equally often. The
    numbers are the same, bit for bit, in whatever the weights are kept. `ahead` is as in
    `Bringing`.
    """
    done: dict[Tensor, tuple[nn.Parameter, Tensor]] = {}  # of what modules share
    for module in repeated_layers(network):
        own = module.weight
        if own not in done:
            shape = torch.empty(own.shape, dtype=own.dtype, device="meta")
            stored = module._buffers.get(PACKED, own)
            done[own] = nn.Parameter(shape, requires_grad=False), part_of(stored, group)
        module.weight, part = done[own]
        module._buffers.pop(PACKED, None)  # as a whole
        module.register_buffer(PART, part, persistent=False)
        module.__dict__[OUTSIDE] = module.weight
    if not is_kept(network):
        keep(network, computes_in(network))
    network.__dict__[WIDENING].bringing = Bringing(torch.device(device), group, ahead=ahead)
    move(network, device)


def part_of(weight: Tensor, group: Group) -> Tensor:
    """What the process of this rank keeps: as many numbers as any other, zeros behind the last."""
    flat = weight.detach().reshape(-1)
    size = -(-flat.numel() // group.count)
    own = flat[group.rank * size : (group.rank + 1) * size]
    part = flat.new_zeros(size)
    part[: own.numel()] = own
    return part


def group_of(network: nn.Module) -> Group | None:
    """The processes that have parts of this network's weights, None where it has them itself."""
    bringing: Bringing | None = network.__dict__[WIDENING].bringing if is_kept(network) else None
    return None if bringing is None else bringing.group


def part_bytes(network: nn.Module) -> int:
    """The bytes of the parts that this process has."""
    return bytes_of({m._buffers[PART] for m in network.modules() if PART in m._buffers})


def alone(count: int) -> Group:
    """One process in the place of `count`, for networks that are counted and not computed."""
    return Group(0, count, lambda part: part.repeat(count))


def count_alone(network: nn.Module) -> None:
    """From now on `network` asks no other process for its parts, and what it gives is no result."""
    if (group := group_of(network)) is not None:
        bringing: Any = network.__dict__[WIDENING].bringing
        bringing.group = alone(group.count)
