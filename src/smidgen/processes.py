"""Several processes that torchrun or accelerate launch started: who this one is, and how small
things travel between them.

The only user of torch.distributed. Without their environment there is one process, and nothing here
does anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from smidgen.errors import SmidgenError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

EVERYWHERE = "in every process"
PATIENCE = timedelta(days=1)  # one process may read a large data set while others wait


class ProcessLost(SmidgenError):
    """Another process of this run ended, or cannot be reached."""


def world_size() -> int:
    """The number of processes that were started, 1 without a launcher."""
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


def shard(items: range) -> range:
    """This process's share of the items, every `world_size`-th of them."""
    return items[rank() :: world_size()]


def own_device(device: str) -> str:
    """The device of this process: each of several on one machine takes its own accelerator."""
    return f"cuda:{local_rank()}" if device == "cuda" and world_size() > 1 else device


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the body before all others: it fills a cache that they read."""
    if not is_main():
        barrier()
    try:
        yield
    finally:
        if is_main():
            barrier()


def barrier() -> None:
    """Wait until every process is here. Raises: ProcessLost."""
    if world_size() > 1:
        with _together() as dist:
            dist.barrier(_group())


def gather_list(values: Sequence[T]) -> list[T]:
    """The values of all processes in order of rank, on each; every process must call it.

    For small things that pickle. Raises: ProcessLost.
    """
    return [value for part in gather_objects(list(values)) for value in part]


def gather_objects(value: T) -> list[T]:
    """What each process has, in order of rank, on all of them. Raises: ProcessLost."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    with _together() as dist:
        dist.all_gather_object(found, value, group=_group())
    return found


def from_main(work: Callable[[], T]) -> T:
    """What `work` gives or raises in the main process, in every one; the others do not do it.

    Raises: as `work`, a SmidgenError only; ProcessLost.
    """
    if world_size() == 1:
        return work()
    found: tuple[Any, str, int] = (None, "", 0)  # what it gave, or the error and its exit code
    if is_main():
        try:
            found = (work(), "", 0)
        except SmidgenError as error:
            found = (None, str(error), error.exit_code)
    value, message, code = gather_objects(found)[0]
    if message:
        raise shared((UsageError if code == UsageError.exit_code else SmidgenError)(message))
    return value  # pyright: ignore[reportReturnType]


def shared(error: SmidgenError) -> SmidgenError:
    """The error marked as one that every process raises, so that one of them tells it."""
    error.add_note(EVERYWHERE)
    return error


def speaks(error: BaseException) -> bool:
    """Whether this process is the one that tells of the error: the main one, or any for what went
    wrong in it alone. Until the processes are connected they all fail alike.
    """
    if is_main():
        return True
    torch = sys.modules.get("torch")
    connected = torch is not None and torch.distributed.is_initialized()
    if isinstance(error, ProcessLost):  # the main process tells, unless it is the one that is gone
        return rank() == 1
    return connected and EVERYWHERE not in getattr(error, "__notes__", ())


def broadcast(tensor: Tensor, source: int) -> Tensor:
    """The tensor of process `source`, written into that of every other. Raises: ProcessLost."""
    if world_size() > 1:
        with _together() as dist:
            dist.broadcast(tensor, src=source, group=_group())
    return tensor


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, in place, the same on each. Raises: ProcessLost."""
    if world_size() > 1:
        with _together() as dist:
            dist.all_reduce(tensor, group=_group() if tensor.device.type == "cpu" else None)
    return tensor


def gather_parts(part: Tensor) -> Tensor:
    """The parts (n) of all processes in order of rank, (N n), on each; every process must call it,
    with as many numbers. Raises: ProcessLost.
    """
    import torch

    whole = part.new_empty(world_size() * part.numel())
    with _together() as dist:  # as bytes, whatever the numbers are
        group = _group() if part.device.type == "cpu" else None
        # the name before torch 2.13, which deprecates it
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(whole.view(torch.uint8), part.view(torch.uint8), group=group)
    return whole


@contextmanager
def _together() -> Iterator[Any]:
    """torch.distributed; a peer that ended breaks what all do together: told in one line."""
    import torch.distributed as dist

    try:
        yield dist
    except RuntimeError as error:
        raise ProcessLost(
            f"process {rank()} of {world_size()} lost the others ({_first_line(error)}); run the "
            "same command again: it resumes at the last checkpoint"
        ) from error


def _group() -> Any:
    """The group of all processes that moves CPU tensors; connects them when first asked."""
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise UsageError(
                    f"WORLD_SIZE is {world_size()} but {name} is not set; start the processes with "
                    "torchrun, or unset WORLD_SIZE for one process"
                )
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
    if "gloo" in str(dist.get_backend_config()):
        return dist.group.WORLD
    return dist.new_group(backend="gloo", timeout=PATIENCE)  # the caller's own is for GPUs alone


def _from_environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise UsageError(f'{name} is "{value}", not a number; let torchrun set the environment')
    return int(value)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
