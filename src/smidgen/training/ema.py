"""The exponential moving average of a delta: of the trained tensors only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_DECAY = 0.9999  # of the DiffFit paper


def decay_after(num_updates: int, largest: float | None, *, warmup: bool = True) -> float:
    """min(largest, (1 + n) / (10 + n)): early averages forget the start quickly. None: 0.9999.

    Without `warmup` it is `largest` from the first update on, as in DiT's train.py.
    """
    limit = LARGEST_DECAY if largest is None else largest
    return min(limit, (1 + num_updates) / (10 + num_updates)) if warmup else limit


@torch.no_grad()
def update_average(average: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * values, in place, all tensors in one call."""
    torch._foreach_lerp_(list(average), list(values), 1 - decay)
