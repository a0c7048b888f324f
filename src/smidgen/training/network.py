"""The frozen base with a delta attached, as the function that is trained.

Everything done to the base here is undone at the end: its weights are never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.delta import Delta
from smidgen.core.edits import Table
from smidgen.errors import SmidgenError, UsageError
from smidgen.models.base import Base
from smidgen.training.config import TrainingConfig
from smidgen.training.objective import Network
from smidgen.training.state import TrainingState


@contextmanager
def training_network(base: Base, delta: Delta, config: TrainingConfig) -> Iterator[Network]:
    """The base with `delta` attached and only the delta receiving gradients; compiled if the
    settings ask for it.
    """
    denoiser = base.denoiser
    flags = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    checkpointing = denoiser.gradient_checkpointing
    denoiser.requires_grad_(False)
    denoiser.gradient_checkpointing = config.gradient_checkpointing
    try:
        with delta.attach(denoiser):
            yield _compiled(base) if config.compile else denoiser
    finally:
        denoiser.gradient_checkpointing = checkpointing
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextmanager
def averaged(state: TrainingState) -> Iterator[None]:
    """The average acts in the base in the place of the delta under training."""
    values = state.delta.clone()
    state.delta.copy_(state.average)
    try:
        yield
    finally:
        state.delta.copy_(values)


def check_compiler() -> None:
    """Raises: UsageError if torch.compile has no C++ compiler for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise UsageError(
            "compile needs a C++ compiler on a CPU and none was found: install g++, or train "
            "without compile"
        ) from error


def _compiled(base: Base) -> Network:
    """Compiled with what is attached to the base now; what comes later would be ignored."""
    denoiser, config = base.denoiser, base.denoiser.config
    # whether the delta acts at all its sites is seen in an ordinary call only
    pixels = (1, config.in_channels, config.image_size, config.image_size)
    label = torch.zeros(1, dtype=torch.long, device=base.device)
    with torch.no_grad():
        denoiser(torch.zeros(pixels, device=base.device, dtype=dtype_of(denoiser)), label, label)
    fast: Any = torch.compile(denoiser)
    from torch._dynamo.exc import BackendCompilerFailed

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        try:
            return fast(x, t, y)
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise SmidgenError(f"torch.compile failed ({reason}): train without compile") from error

    return network


def class_names(base: Base, delta: Delta | None) -> tuple[str, ...]:
    """The classes that labels count, the null label after them: the delta's if it brings its own
    label table.
    """
    if delta is not None and any(isinstance(edit, Table) for edit in delta.edits.values()):
        return delta.provenance.classes
    return base.class_names


def dtype_of(network: nn.Module) -> torch.dtype:
    """The precision of a network's weights, in which it wants its input."""
    return next(network.parameters()).dtype
