"""Steps of `full` for bench/speed.py, by AdamW in 8 bit and by PyTorch's, and what each keeps."""

from __future__ import annotations

import torch

from bench.rows import SHAPES, Rows, batch_of, delta_of, own, step, with_delta
from smidgen.training.optimizer import bytes_of_moments, make_optimizer

AS_TRAINED = {"AdamW": False, "AdamW in 8 bit": True}


def steps_of(name: str) -> Rows:
    """A step of each, all of the same delta: what they change is less than can be seen."""
    network, batch = own(SHAPES[name]), batch_of(SHAPES[name])
    delta = delta_of(network, "full")
    parameters = list(delta.parameters())
    optimizers = {"PyTorch's default": torch.optim.AdamW(parameters)} | {
        words: make_optimizer(parameters, eight_bit=eight_bit, weight_decay=0.0, seed=0)
        for words, eight_bit in AS_TRAINED.items()
    }
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["lr"] = 1e-9
    return {
        f"full, fast, {words}": with_delta(
            network, delta, step(network, parameters, batch, optimizer=optimizer), fast=True
        )
        for words, optimizer in optimizers.items()
    }


def state(name: str) -> dict[str, float]:
    """Megabytes of an optimizer's two moments."""
    parameters = list(delta_of(own(SHAPES[name]), "full").parameters())
    return {
        f"full, {words}": round(bytes_of_moments(parameters, eight_bit=eight_bit) / 1e6, 1)
        for words, eight_bit in AS_TRAINED.items()
    }
