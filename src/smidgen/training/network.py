"""The frozen base with a delta attached, as the function that is trained.

Everything done to the base here is undone at the end: its weights are never written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.fast.acting import acting
from smidgen.models.base import Base
from smidgen.models.calling import DTYPES, Network, calling, dtype_of
from smidgen.models.dit import DiT
from smidgen.models.reader import Reader
from smidgen.training.activations import one_byte_kept
from smidgen.training.compiled import check_gradients, compiling
from smidgen.training.config import TrainingConfig
from smidgen.training.objective import Task
from smidgen.training.state import TrainingState


@contextmanager
def training_network(
    base: Base, delta: Delta, task: Task, config: TrainingConfig
) -> Iterator[Network]:
    """The base with `delta` attached, and the text encoders where it reads texts in the step; only
    the delta receives gradients. Compiled if the settings ask for it.
    """
    denoiser = base.denoiser
    flags = {parameter: parameter.requires_grad for parameter in denoiser.parameters()}
    denoiser.requires_grad_(False)
    try:
        with (
            checkpointing(denoiser, config.gradient_checkpointing),
            acting(delta, denoiser, fast=config.fast, frozen_precision=config.frozen_precision),
            nullcontext() if task.texts is None else reading(task.texts.reader, delta, config),
        ):
            if config.compile:
                with compiling():
                    yield _compiled(base, delta, task, config)
            else:
                network = calling(base.family, denoiser, config.embedded_guidance)
                yield network if config.activations == "exact" else _kept(network, denoiser, delta)
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextmanager
def reading(reader: Reader, delta: Delta, config: TrainingConfig) -> Iterator[None]:
    """The text encoders of the reader with `delta` attached; as `config` says, layers of those in
    which something is trained are recomputed.
    """
    with ExitStack() as stack:
        for one in reader.encoders:
            if config.gradient_checkpointing and one.component in delta.components:
                stack.enter_context(recomputing(one.network))
        stack.enter_context(reader.attached(delta))
        yield


@contextmanager
def recomputing(encoder: Any) -> Iterator[None]:
    """The layers of a network of transformers are recomputed. They do so in training mode only,
    which each layer is in alone: what is inside, such as dropout, stays as when it reads.
    """
    encoder.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [one for one in encoder.modules() if getattr(one, "gradient_checkpointing", False)]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer in layers:
            layer.training = False
        encoder.gradient_checkpointing_disable()


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


def _kept(network: Network, denoiser: Any, delta: Delta) -> Network:
    """`network`, which keeps what it computes in one byte a number.

    Raises: UsageError for one that is no DiT.
    """
    if not isinstance(denoiser, DiT):
        raise UsageError(
            f"activations 8bit is for a DiT; leave it out for a {type(denoiser).__name__}"
        )

    def call(*inputs: Any) -> Tensor:
        with one_byte_kept(denoiser, delta):
            return network(*inputs)

    return call


def _compiled(base: Base, delta: Delta, task: Task, config: TrainingConfig) -> Network:
    """Compiled with what is attached to the base now; what comes later would be ignored."""
    random = torch.Generator().manual_seed(0)
    shape, count, device = base.latent_shape, config.rows, base.device
    x = torch.randn((count, *shape), generator=random).to(device, dtype_of(base.denoiser))
    t = task.process.times(torch.linspace(0.1, 0.9, count, dtype=torch.float64)).to(device)
    condition = task.labels.conditions(torch.zeros(count, dtype=torch.long, device=device))
    reduced = DTYPES[config.precision]

    def squares(network: Network) -> Tensor:
        with torch.autocast(device.type, reduced, enabled=reduced != torch.float32):
            return network(x, t, condition).float().square().mean()

    # whether the delta acts at all its sites is seen in an ordinary call only
    plain = calling(base.family, base.denoiser, config.embedded_guidance)
    fast: Any = torch.compile(base.denoiser)
    compiled = calling(base.family, fast, config.embedded_guidance)
    edits = [edit for edit in delta.edits.values() if not edit.component]
    trained = [parameter for edit in edits for parameter in edit.parameters()]
    check_gradients(lambda: squares(plain), lambda: squares(compiled), trained)
    return compiled
