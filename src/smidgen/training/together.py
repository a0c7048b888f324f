"""What several processes of one training tell each other at each step: gradients of the delta, the
loss, and whether one was asked to stop. A few kilobytes, in one message.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

import torch
from torch import nn

from smidgen.processes import sum_over_processes, world_size


@torch.no_grad()
def average_over_processes(
    parameters: Sequence[nn.Parameter], loss: float, stop: int | None
) -> tuple[float, int | None]:
    """Replace every gradient by its mean over all processes, the same bits on each; returns the
    mean of their losses and the signal by which any of them was told to stop (None: none was).

    Raises: ProcessLost if another process ended.
    """
    if world_size() == 1:
        return loss, stop
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    told = gradients[0].new_tensor([loss, float(stop is not None)])
    together = torch.cat([*(gradient.reshape(-1) for gradient in gradients), told])
    sum_over_processes(together)
    parts = together[:-2].div_(world_size()).split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    is_told = together[-1].item() > 0
    return together[-2].item() / world_size(), (stop or signal.SIGTERM) if is_told else None
