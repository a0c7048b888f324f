"""How far products in 8 bit are from exact ones: measured on the first batch, before any step."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.data.latents import LatentSet
from smidgen.errors import UsageError
from smidgen.fast.eight_bit import kind_of
from smidgen.fast.network import FastDiT
from smidgen.hosts.family import Condition
from smidgen.models.base import Base
from smidgen.models.calling import calling, dtype_of
from smidgen.processes import world_size
from smidgen.training.buckets import BucketOrder
from smidgen.training.config import TrainingConfig
from smidgen.training.objective import Batch, Task, batch_loss, draw_batch, total_loss
from smidgen.training.randomness import Streams

# Of the length of the output. Weights without outliers give about 0.01 in int8, and some times that
# in floats of 8 bit; with channels many times larger than others the small ones are rounded away in
# int8, and the output is off by 0.04 and more.
MOST = 0.02

logger = logging.getLogger(__name__)


def first_batch(latents: LatentSet, trained: Tensor, task: Task, config: TrainingConfig) -> Batch:
    """The batch of the first step on the images with the indices `trained`; nothing that a run
    draws from is touched.
    """
    order = BucketOrder(latents.in_buckets(trained), config.seed)
    taken = order.take(config.batch_size * world_size())
    return draw_batch(latents, taken, Streams(config.seed), task, config)


def frozen_errors(
    base: Base, delta: Delta, batch: Batch, task: Task, config: TrainingConfig
) -> dict[str, float]:
    """The distance of `output` and `gradient` (of all that is trained) from those with exact
    products, as shares of their lengths, while the delta acts on the fast path.
    """
    fast = base.denoiser.fast
    assert isinstance(fast, FastDiT)
    reduced = _output_and_gradient(base, delta, batch, task, config)
    with fast.exactly():
        exact = _output_and_gradient(base, delta, batch, task, config)
    found = {
        name: round(float((one - other).norm() / other.norm()), 6)
        for name, one, other in zip(("output", "gradient"), reduced, exact, strict=True)
    }
    logger.info(
        "products in 8 bit (%s) are off exact ones by %.2g %% in the output and %.2g %% in the "
        "gradient",
        str(kind_of(base.device)).removeprefix("torch."),
        *(100 * error for error in found.values()),
    )
    return found


def check_frozen_errors(found: Mapping[str, float], config: TrainingConfig) -> None:
    """Raises: UsageError if the output is further off than MOST."""
    if not found["output"] <= MOST:
        raise UsageError(
            f"frozen_precision {config.frozen_precision} changes the output of this base by "
            f"{found['output']:.1%}, more than {MOST:.0%}: numbers of 8 bit are too coarse for it, "
            "as where some channels are far larger than others; give 8bit-backward or exact"
        )


def _output_and_gradient(
    base: Base, delta: Delta, batch: Batch, task: Task, config: TrainingConfig
) -> tuple[Tensor, Tensor]:
    """Of a batch, the gradient as one long vector."""
    network = calling(base.family, base.denoiser)
    outputs = []

    def watched(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        outputs.append(network(x, t, condition))
        return outputs[-1]

    losses = batch_loss(watched, batch, task, config, dtype_of(base.denoiser))
    parameters = list(delta.parameters())
    found = torch.autograd.grad(total_loss(losses, config), parameters, allow_unused=True)
    gradient = torch.cat([one.flatten() for one in found if one is not None])
    return outputs[0].detach().float(), gradient
