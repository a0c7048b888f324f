"""The frozen base with a delta attached, as the function that is trained.

Everything done to the base here is undone at the end: its weights are never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from smidgen.core.delta import Delta
from smidgen.core.edits import Table
from smidgen.errors import SmidgenError, UsageError
from smidgen.models.base import Base
from smidgen.training.config import CLASS, DEFAULT_PROMPT, TrainingConfig
from smidgen.training.objective import Network, Task, calling
from smidgen.training.state import TrainingState

PROMPTS = "prompts"  # where a delta's provenance says which prompts it was trained on


@contextmanager
def training_network(
    base: Base, delta: Delta, task: Task, config: TrainingConfig
) -> Iterator[Network]:
    """The base with `delta` attached and only the delta receiving gradients; compiled if the
    settings ask for it.
    """
    denoiser = base.denoiser
    flags = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    denoiser.requires_grad_(False)
    try:
        with checkpointing(denoiser, config.gradient_checkpointing), delta.attach(denoiser):
            if config.compile:
                with _compiling():
                    yield _compiled(base, task, config)
            else:
                yield calling(base.family, denoiser, config.embedded_guidance)
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextmanager
def checkpointing(denoiser: Any, wanted: bool) -> Iterator[None]:
    """Blocks are recomputed in the backward pass or not, as `wanted`; afterwards as before.

    Raises: UsageError if they should be and this network cannot do that.
    """
    if not hasattr(denoiser, "enable_gradient_checkpointing"):  # our own network has a plain flag
        before = denoiser.gradient_checkpointing
        denoiser.gradient_checkpointing = wanted
        try:
            yield
        finally:
            denoiser.gradient_checkpointing = before
        return
    before = denoiser.is_gradient_checkpointing
    try:
        _switch(denoiser, wanted)
        yield
    finally:
        _switch(denoiser, before)


def _switch(denoiser: Any, wanted: bool) -> None:
    if wanted == denoiser.is_gradient_checkpointing:
        return
    try:
        (
            denoiser.enable_gradient_checkpointing
            if wanted
            else denoiser.disable_gradient_checkpointing
        )()
    except ValueError as error:
        raise UsageError(
            f"a {type(denoiser).__name__} cannot recompute its blocks: train without "
            "gradient_checkpointing"
        ) from error


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


def _compiled(base: Base, task: Task, config: TrainingConfig) -> Network:
    """Compiled with what is attached to the base now; what comes later would be ignored."""
    denoiser, dtype = base.denoiser, dtype_of(base.denoiser)
    # whether the delta acts at all its sites is seen in an ordinary call only
    with torch.no_grad():
        pixels = torch.zeros((1, *base.latent_shape), device=base.device, dtype=dtype)
        time = task.times(torch.zeros(1, dtype=torch.float64), config).to(base.device)
        label = torch.zeros(1, dtype=torch.long, device=base.device)
        network = calling(base.family, denoiser, config.embedded_guidance)
        network(pixels, time, task.conditions(label))
    fast: Any = torch.compile(denoiser)
    return calling(base.family, fast, config.embedded_guidance)


@contextmanager
def _compiling() -> Iterator[None]:
    """The compiler works in the first forward and in the first backward pass, and fails there."""
    from torch._dynamo.exc import BackendCompilerFailed

    try:
        yield
    except BackendCompilerFailed as error:
        reason = str(error.inner_exception).strip().partition("\n")[0]
        raise SmidgenError(f"torch.compile failed ({reason}): train without compile") from error


def class_names(base: Base, delta: Delta | None) -> tuple[str, ...]:
    """The classes that labels count, the null label after them: the delta's if it brings its own
    label table, or was trained on prompts made of their names.
    """
    if delta is not None and any(isinstance(edit, Table) for edit in delta.edits.values()):
        return delta.provenance.classes
    if delta is not None and base.conditioner is not None:
        return tuple(delta.provenance.training.get(PROMPTS, {}).get("classes", ()))
    return base.class_names


def class_prompts(base: Base, delta: Delta | None) -> tuple[str, ...]:
    """The prompts of `class_names`, in that order; none of a base that knows classes."""
    if delta is None or base.conditioner is None:
        return ()
    template = delta.provenance.training.get(PROMPTS, {}).get("template", DEFAULT_PROMPT)
    return tuple(prompt_of(name, template) for name in class_names(base, delta))


def prompt_of(name: str, template: str | None) -> str:
    """The prompt of a class: its name in the place of {class} in the template."""
    return (template or DEFAULT_PROMPT).replace(CLASS, name)


def dtype_of(network: nn.Module) -> torch.dtype:
    """The precision of a network's weights, in which it wants its input."""
    return next(network.parameters()).dtype
