"""How much memory a training takes, before it starts.

One step is run on fake tensors, which have shapes and no content, while every tensor that comes and
goes is counted: so it holds for any method, precision and checkpointing, in seconds. Measured
beside it, and what the allocator keeps beyond that: bench/memory_estimate.py.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from smidgen.core.delta import Delta
from smidgen.core.edits import edit_from_spec
from smidgen.core.sharding import count_alone, part_bytes
from smidgen.core.storage import bring_to, bytes_of, outside, stored_bytes
from smidgen.fast.acting import acting
from smidgen.hosts.host import find_family
from smidgen.models.calling import DTYPES, calling, dtype_of
from smidgen.models.dit import DiT
from smidgen.models.labels import Labels
from smidgen.models.reader import Reader
from smidgen.training.activations import one_byte_kept
from smidgen.training.config import ADAMW_8BIT, TrainingConfig
from smidgen.training.example import Example, example_of
from smidgen.training.network import checkpointing, recomputing
from smidgen.training.objective import Batch, batch_loss, total_loss
from smidgen.training.optimizer import bytes_of_moments
from smidgen.training.peak import Peak, copies_of_a_cpu
from smidgen.training.precision import with_precision


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a training: what stays, and the peak of one `step`, gradients included.

    The base's `weights`, the `delta`, its `optimizer` moments and its `average` stay; the `step`
    has activations, gradients, weights that are brought in, and what kernels take for themselves.
    What of the base is `offloaded` lies in the memory of the machine, what is `in_others` in the
    processes that have the other parts of its weights: neither is part of the total.
    """

    weights: int
    offloaded: int
    in_others: int
    delta: int
    optimizer: int
    average: int
    step: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.delta + self.optimizer + self.average + self.step

    def as_dict(self) -> dict[str, int]:
        """The parts and their total; of what lies elsewhere where something does."""
        elsewhere = ("offloaded", "in_others")
        parts = {name: size for name, size in asdict(self).items() if size or name not in elsewhere}
        return parts | {"total": self.total}


def estimate_memory(
    denoiser: nn.Module,
    delta: Delta,
    config: TrainingConfig,
    example: Example | None = None,
    reader: Reader | None = None,
    *,
    device: str = "cpu",
) -> MemoryEstimate:
    """The parts of the estimate for a device of this kind, on which network and delta need not be.
    `example` None: of the size that the network was trained at. `reader` has the text encoders, on
    the meta device, where texts are encoded in the step: they are weights too. Python, its
    libraries and the codec are not in it, nor what compilation saves, which is not known
    beforehand.
    """
    size = bytes_of(delta.parameters())
    # Writing a delta takes its bytes and a copy in the file's form; the peak is that or a step's.
    encoders = () if reader is None else reader.encoders
    networks = (denoiser, *(one.network for one in encoders))
    brought, parts = outside(denoiser), part_bytes(denoiser)
    early = max(brought, default=0)  # one of them is on its way, or has just come
    return MemoryEstimate(
        weights=sum(map(stored_bytes, networks)) - sum(brought) + parts + early,
        offloaded=0 if parts else sum(brought),
        in_others=max(0, sum(brought) - parts) if parts else 0,
        delta=size,
        optimizer=bytes_of_moments(delta.parameters(), eight_bit=config.optimizer == ADAMW_8BIT),
        average=size,
        step=max(step_bytes(denoiser, delta, config, example, reader, device=device), 2 * size),
    )


def step_bytes(
    denoiser: nn.Module,
    delta: Delta,
    config: TrainingConfig,
    example: Example | None = None,
    reader: Reader | None = None,
    *,
    device: str = "cpu",
) -> int:
    """The bytes of all tensors of a step that live at once at its peak, gradients included, weights
    not; on a CPU with the copies that convolutions work on.
    """
    example = example or example_of(denoiser)
    shape, count = example.latent_shape, config.rows * config.calls_kept
    config = with_precision(config, denoiser, shape, torch.device(device))
    with FakeTensorMode(allow_non_fake_inputs=True):
        network = _fake_copy(denoiser)
        bring_to(network, "cpu")
        count_alone(network)
        copies = {spec["name"]: edit_from_spec(spec) for spec in delta.specs()}
        fresh = Delta(copies, delta.provenance)
        with (
            checkpointing(network, config.gradient_checkpointing),
            Peak(network, fresh, own_copies=copies_of_a_cpu if device == "cpu" else None) as peak,
            acting(fresh, network, fast=config.fast, frozen_precision=config.frozen_precision),
            nullcontext() if reader is None else _reading(reader, fresh, config),
        ):
            task = example.with_rows(count)
            if reader is not None:
                task = replace(task, labels=_texts(reader, count, dtype_of(denoiser)))
            labels = torch.zeros(count, dtype=torch.long)
            batch = Batch(
                images=labels,
                latents=torch.empty(count, *shape),
                noise=torch.empty(count, *shape),
                timesteps=task.process.times(torch.zeros(count, dtype=torch.float64)),
                labels=labels,
            )
            reduced = DTYPES[config.precision]
            called = calling(find_family(denoiser), network)
            eight_bit = config.activations == "8bit" and isinstance(network, DiT)
            with (
                torch.autocast("cpu", reduced, enabled=reduced != torch.float32),
                one_byte_kept(network, fresh) if eight_bit else nullcontext(),
            ):
                losses = batch_loss(called, batch, task, config, dtype_of(denoiser))
            total_loss(losses, config).backward()
    return peak.highest


@contextmanager
def _reading(reader: Reader, delta: Delta, config: TrainingConfig) -> Iterator[None]:
    """Fake encoders in the place of the reader's, with the delta attached."""
    with ExitStack() as stack:
        for one in reader.encoders:
            network = _fake_copy(one.network)
            setattr(reader.pipeline, one.component, network)
            stack.callback(setattr, reader.pipeline, one.component, one.network)
            if config.gradient_checkpointing and one.component in delta.components:
                stack.enter_context(recomputing(network))
            stack.enter_context(delta.attach(network, component=one.component))
        yield


def _texts(reader: Reader, count: int, dtype: torch.dtype) -> Labels:
    """A different text for each image, whatever its label, all of which a text encoder fills up."""
    prompts = [str(number) for number in range(count)]
    return Labels(
        names=(), conditions=lambda labels: reader.batch(prompts, torch.device("cpu"), dtype)
    )


def resident_bytes() -> int | None:
    """What this process has in memory now, None where the system does not tell (not Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _fake_copy(network: nn.Module) -> Any:
    """The same modules with fake frozen parameters on the CPU, in the mode that is on now."""
    memo: dict[int, Any] = {}
    for tensor in (*network.parameters(), *network.buffers()):
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if is_parameter else empty
    return copy.deepcopy(network, memo)
