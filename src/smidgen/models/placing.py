"""Where the weights of a base's blocks are: on its device, in the memory of the machine
(`offload`), or a part of each in each of several processes (`shard`).
"""

from __future__ import annotations

import torch
from torch import nn

from smidgen.core.bringing import Group
from smidgen.core.sharding import shard as keep_parts
from smidgen.core.storage import move
from smidgen.core.storage import offload as keep_outside
from smidgen.errors import UsageError
from smidgen.processes import gather_objects, gather_parts, rank, shared, world_size


def check_placing(device: str | torch.device, *, offload: bool, shard: bool) -> None:
    """Raises: UsageError if weights should be kept outside a device without memory of its own, or
    outside and in parts.
    """
    if offload and shard:
        raise UsageError("offload and shard do not go together; give one of them")
    if offload and torch.device(device).type == "cpu":
        raise UsageError(
            "offload keeps weights in the memory of the machine and out of that of an accelerator; "
            "on a CPU both are the same: leave it out"
        )


def check_processes(*, shard: bool) -> None:
    """Raises: UsageError if there is one process alone to keep parts of the weights."""
    if shard and world_size() == 1:
        raise UsageError(
            "shard gives each of several processes a part of the weights, and this is one; start "
            "more (torchrun --nproc-per-node 2 -m smidgen.cli train ...), or leave it out"
        )


def place(
    network: nn.Module, device: str | torch.device, *, offload: bool = False, shard: bool = False
) -> None:
    """`network`, which is in the memory of the machine, on `device`, as `check_placing` allows."""
    if offload:
        keep_outside(network, device)
    elif shard:
        keep_parts(network, device, Group(rank(), world_size(), gather_parts))
    else:
        move(network, device)


def check_same(name: str, fingerprint: str) -> None:
    """Raises: UsageError in every process if they read different weights by the same name."""
    if len(set(gather_objects(fingerprint))) > 1:
        raise shared(
            UsageError(
                f'base "{name}" has other weights in some of the {world_size()} processes; with '
                "shard give all of them the same files"
            )
        )
