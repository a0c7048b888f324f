"""The device side of training, the only importer of accelerate: precision, backward, trackers.

accelerate is imported when a training starts, no earlier: that takes a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from smidgen.errors import UsageError
from smidgen.fast.eight_bit import check_eight_bit
from smidgen.processes import barrier, is_main
from smidgen.training.compiled import check_compiler
from smidgen.training.config import TrainingConfig

if TYPE_CHECKING:
    from accelerate import Accelerator

MIXED_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def check_runtime(config: TrainingConfig, device: torch.device) -> None:
    """Raises: UsageError if this machine lacks what the settings ask for: a tracker that is not
    installed, fp16 without an accelerator, products in 8 bit without instructions for them, or
    compilation without a compiler.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 needs an accelerator; on a CPU choose fp32 or bf16")
    if config.frozen_precision != "exact":
        check_eight_bit(device)
    if config.trackers:
        _check_trackers(config.trackers)
    if config.compile and device.type == "cpu":
        check_compiler()


def _check_trackers(names: Sequence[str]) -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(LOGGER_TYPE_TO_CLASS)
            raise UsageError(
                f'unknown tracker "{name}"; choose from: {known}; none at all: an empty list '
                "(--trackers without a name)"
            )
        if name not in installed:
            raise UsageError(f'tracker "{name}" is not installed: pip install {name}')


@contextmanager
def open_runtime(
    config: TrainingConfig, device: torch.device, folder: Path, first_step: int
) -> Iterator[Accelerator]:
    """An Accelerator for one run on `device`, its trackers writing from `first_step` on.

    Raises: UsageError where the process already uses accelerate in another precision.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized

    barrier()  # connects the processes, where there are several, before accelerate looks for them
    trackers: list[Any] = list(config.trackers) if is_main() else []
    had_state = is_initialized()
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=MIXED_PRECISION[config.precision],
            log_with=trackers or None,
            project_dir=str(folder),
        )
    except ValueError as error:
        raise UsageError(f"accelerate refuses precision {config.precision}: {error}") from error
    try:
        if trackers:
            # what a killed run logged after its last checkpoint is logged again
            arguments = {"tensorboard": {"purge_step": first_step + 1}}
            accelerator.init_trackers("tensorboard", init_kwargs=arguments)
        yield accelerator
    finally:
        for tracker in accelerator.trackers:  # end_training would also part the processes
            tracker.finish()
        if not had_state:
            # accelerate keeps a precision for the whole process; the next run may have another
            AcceleratorState._reset_state(reset_partial_state=True)


def clipped_norm(
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    max_norm: float | None,
) -> Tensor:
    """The norm of all gradients, which are then scaled down to `max_norm`; None leaves them."""
    if accelerator.scaler is not None:
        accelerator.scaler.unscale_(optimizer)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if max_norm is not None:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def optimizer_step(accelerator: Accelerator, optimizer: torch.optim.Optimizer) -> None:
    """One update, left out by the scaler where a gradient overflowed fp16; gradients are gone."""
    if accelerator.scaler is None:
        optimizer.step()
    else:
        accelerator.scaler.step(optimizer)
        accelerator.scaler.update()
    optimizer.zero_grad(set_to_none=True)


def scaler_state(accelerator: Accelerator) -> dict[str, Any]:
    """The loss scaling of fp16 as JSON; {} in other precisions."""
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else {}


def restore_scaler(accelerator: Accelerator, state: Mapping[str, Any]) -> None:
    """Go on from `scaler_state`."""
    if accelerator.scaler is not None and state:
        accelerator.scaler.load_state_dict(dict(state))


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """PyTorch on this many CPU threads; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
