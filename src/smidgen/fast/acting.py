"""How a delta comes to act in a network: on the fast path where there is one, else by hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

from smidgen.core.attachment import attach
from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.core.edit import Acting
from smidgen.fast.names import FrozenPrecision
from smidgen.fast.network import FastDiT
from smidgen.fast.plan import plan_of
from smidgen.models.dit import DiT


@dataclass(frozen=True)
class Outside:
    """The edits of a delta that act elsewhere than in the blocks, to be attached as ever."""

    edits: Mapping[str, Acting]


@contextmanager
def acting(
    delta: Delta | Bank | None,
    network: nn.Module,
    *,
    fast: bool = True,
    frozen_precision: FrozenPrecision = "exact",
) -> Iterator[None]:
    """The edits of a delta in the denoiser, or of a bank, act in `network` until the end of the
    `with`: without hooks in its blocks if it is a `DiT` and `plan_of` can serve them, and this is
    wanted. Both ways compute the same function; rounding differs. `frozen_precision` is that of
    products with frozen weights where gradients are asked for, on the fast path alone.

    Raises: SmidgenError as `Delta.attach`; in a call, if hooks have come to the blocks meanwhile.
    """
    plan = plan_of(network, _edits_of(delta)) if fast else None
    if plan is None or not isinstance(network, DiT):
        with nullcontext() if delta is None else delta.attach(network):
            yield
        return
    for edit in plan.inside.values():
        edit.check(network)
    with attach(Outside(plan.outside), network):
        network.fast = FastDiT(network, plan, frozen_precision)
        try:
            yield
        finally:
            network.fast = None


@contextmanager
def scheduled(network: nn.Module, times: Tensor) -> Iterator[None]:
    """Until the end of the `with` a sampler calls `network` without gradients at these times, in
    this order. On the fast path the modulations of many steps are then computed at once
    (ahead.py); the delta, a bank's slots excepted, may not change meanwhile.
    """
    fast = network.fast if isinstance(network, DiT) else None
    with fast.scheduled(times) if isinstance(fast, FastDiT) else nullcontext():
        yield


def takes_fast_path(delta: Delta | Bank, network: nn.Module) -> bool:
    """Whether `acting` has a fast path for this delta in this network."""
    return plan_of(network, _edits_of(delta)) is not None


def _edits_of(delta: Delta | Bank | None) -> dict[str, Acting]:
    """Those in the denoiser."""
    edits = {} if delta is None else delta.edits
    return {name: edit for name, edit in edits.items() if not edit.component}
