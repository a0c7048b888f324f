"""Rows of bench/speed.py for one GPU: steps of DiT-XL/2 in bf16 with their peaks of memory, and
guided sampling. A row waits until the device has done its work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.rows import (
    Row,
    Rows,
    Shape,
    batch_of,
    delta_of,
    own,
    plain,
    step,
    timed,
    trained,
    with_delta,
)
from bench.sampling_rows import sampling
from bench.training_rows import kept_in_bytes
from smidgen.fast.names import FrozenPrecision

XL = Shape(1152, 28, 16, 256)
IMAGES, STEPS = 32, 50
GIB = 2**30


def steps_of(shape: Shape = XL, device: str = "cuda") -> Rows:
    """A training step, the products under autocast to bf16."""
    batch = [each.to(device) for each in batch_of(shape)]
    network = own(shape).to(device)
    delta = delta_of(network, "difffit").to(device)
    parameters = list(delta.parameters())

    def difffit(precision: FrozenPrecision = "exact", call: Callable[..., Tensor] = network) -> Row:
        run = step(call, parameters, batch, reduced=True)
        return with_delta(network, delta, run, fast=True, frozen_precision=precision)

    naive = plain(shape, difffit=True).to(device)
    hooks = step(network, parameters, batch, reduced=True)
    return {
        "full, plain PyTorch": _full(shape, batch, device),
        "DiffFit, plain PyTorch": step(naive, trained(naive), batch, reduced=True),
        "difffit, hooks": with_delta(network, delta, hooks, fast=False),
        "difffit, fast": difffit(),
        "difffit, fast, activations 8bit": difffit(call=kept_in_bytes(network, delta)),
        "difffit, fast, 8-bit backward": difffit("8bit-backward"),
        "difffit, fast, 8-bit both ways": difffit("8bit"),
    }


def _full(shape: Shape, batch: Any, device: str) -> Row:
    full = plain(shape, difffit=False).to(device)
    return step(full, trained(full), batch, reduced=True)


def peaks(shape: Shape = XL) -> dict[str, float]:
    """GiB that a step reaches at most beyond what lies on the device before it: networks of all
    rows, and AdamW's averages once they are there.
    """
    found = {}
    for name, row in steps_of(shape).items():
        row()
        resting = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        row()
        found[name] = round((torch.cuda.max_memory_allocated() - resting) / GIB, 2)
    return found


def samplings_of(shape: Shape = XL, device: str = "cuda") -> Rows:
    """Latents of guided images, all in bf16."""
    network = own(shape).to(device, torch.bfloat16)
    reference = plain(shape, difffit=False).to(device, torch.bfloat16)
    delta = delta_of(network, "difffit").to(device)

    def drawn(network: nn.Module) -> Row:
        return timed(sampling(network, shape, IMAGES, STEPS, device))

    return {
        "plain PyTorch": drawn(reference),
        "base": with_delta(network, None, drawn(network), fast=True),
        "DiffFit, hooks": with_delta(network, delta, drawn(network), fast=False),
        "DiffFit, fast": with_delta(network, delta, drawn(network), fast=True),
    }
