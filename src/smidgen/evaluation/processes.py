"""Several processes, one evaluation: who measures which batches, and how the parts come together.

The only importer of torch.distributed. Without torchrun's environment there is one process, and
nothing here does anything.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch

from smidgen.errors import UsageError
from smidgen.evaluation.accumulate import Accumulator, Batch, set_up

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # the main process may read a large reference while others wait


def world_size() -> int:
    """The number of processes that torchrun started, 1 without it."""
    return _from_environment("WORLD_SIZE", 1)


def rank() -> int:
    """The number of this process, 0 for the main one."""
    return _from_environment("RANK", 0) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this process on its machine: the device to take."""
    return _from_environment("LOCAL_RANK", 0) if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise UsageError(f'{name} is "{value}", not a number; let torchrun set the environment')
    return int(value)


def shard(batches: range) -> range:
    """This process's share of the numbers of batches, or of their first images: every
    `world_size`-th.

    A batch is the same whoever measures it, so its features are too.
    """
    return batches[rank() :: world_size()]


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the body before all others: it fills a cache that they read."""
    if not is_main():
        _barrier()
    try:
        yield
    finally:
        if is_main():
            _barrier()


def _barrier() -> None:
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier(_group())


def gather_list(values: Sequence[T]) -> list[T]:
    """The values of all processes in order of rank, on each; every process must call it.

    For small things that pickle.
    """
    if world_size() == 1:
        return list(values)
    return [value for part in _gather_objects(list(values)) for value in part]


def gather(accumulator: Accumulator) -> Accumulator:
    """All that the processes accumulated, on each of them; every process must call it.

    The parts are merged in order of rank and their batches sorted by index, so that all processes
    hold the same result and it equals that of one process to rounding, bit for bit where features
    are kept. One process gets its own accumulator back.

    Raises: ValueError if the processes collect different things.
    """
    if world_size() == 1:
        return accumulator
    total = Accumulator(accumulator.dim, accumulator.heads, accumulator.metrics)
    parts = _gather_objects(_without_features(accumulator))
    if any(set_up(part) != set_up(total) for part in parts):  # before some wait for features
        raise ValueError(f"the processes collect different things: {[set_up(p) for p in parts]}")
    for source, part in enumerate(parts):
        if accumulator.keeps_features:
            own = accumulator.batches if source == rank() else None
            part.batches = _broadcast_features(part.batches, own, accumulator.dim, source)
        total.merge(part)
    return total


def _without_features(accumulator: Accumulator) -> Accumulator:
    """The same sums and batches, but for the features: they are sent as plain tensors."""
    light = Accumulator(accumulator.dim, accumulator.heads, accumulator.metrics)
    light.merge(accumulator)
    light.batches = [dataclasses.replace(batch, features=None) for batch in light.batches]
    return light


def _broadcast_features(
    batches: Sequence[Batch], own: Sequence[Batch] | None, dim: int, source: int
) -> list[Batch]:
    """The batches of process `source` with their features, which it sends one by one."""
    import torch.distributed as dist

    group = _group()
    received = []
    for number, batch in enumerate(batches):
        features = own[number].features if own else torch.empty(batch.count, dim)
        assert features is not None
        dist.broadcast(features, src=source, group=group)
        received.append(dataclasses.replace(batch, features=features))
    return received


def _gather_objects(value: T) -> list[T]:
    import torch.distributed as dist

    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value, group=_group())
    return found


def _group() -> Any:
    """The group of all processes that moves CPU tensors; connects the processes when first asked.

    Raises: UsageError without the address that torchrun sets.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise UsageError(
                    f"WORLD_SIZE is {world_size()} but {name} is not set; start the processes with "
                    "torchrun, or unset WORLD_SIZE for one process"
                )
        dist.init_process_group("gloo", timeout=PATIENCE)
    if "gloo" in str(dist.get_backend_config()):
        return dist.group.WORLD
    return dist.new_group(backend="gloo", timeout=PATIENCE)  # the caller's own is for GPUs alone
