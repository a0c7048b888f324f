"""What several processes accumulated of one evaluation, put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from smidgen.evaluation.accumulate import Accumulator, Batch, set_up
from smidgen.processes import broadcast, gather_objects, rank, world_size


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
    parts = gather_objects(_without_features(accumulator))
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
    received = []
    for number, batch in enumerate(batches):
        features = own[number].features if own else torch.empty(batch.count, dim)
        assert features is not None
        broadcast(features, source)
        received.append(dataclasses.replace(batch, features=features))
    return received
