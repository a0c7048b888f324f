"""The validation loss: held-out images with noise and timesteps that never change.

The loss of single timesteps differs a hundredfold, so the timesteps are stratified: one in each of
equally wide parts of the schedule. Two validations then differ by the weights alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from smidgen.data.latents import LatentSet
from smidgen.models.calling import Network
from smidgen.processes import shard, sum_over_processes
from smidgen.training.config import TrainingConfig
from smidgen.training.objective import Batch, Task, batch_loss
from smidgen.training.randomness import generator_for

FEWEST_DRAWS, MOST_DRAWS = 64, 1024  # few images are used several times, of many a part


class Validation:
    """Fixed draws of the held-out images; labels are never dropped."""

    def __init__(
        self, latents: LatentSet, indices: Tensor, task: Task, config: TrainingConfig
    ) -> None:
        count = min(max(len(indices), FEWEST_DRAWS), MOST_DRAWS)
        generator = generator_for(config.seed, "validation")
        # (i * M) // count visits all of M images evenly, more than once where count exceeds M
        chosen = indices[(torch.arange(count) * len(indices)) // count]
        x0, classes = latents.draw(chosen, generator)
        within = torch.rand(count, generator=generator, dtype=torch.float64)
        strata = torch.randperm(count, generator=generator)
        self._task = task
        self._config = config
        self._draws = Batch(
            images=chosen,
            latents=x0,
            labels=task.label(chosen, classes, generator_for(config.seed, "validation labels")),
            timesteps=task.process.times(
                (strata + within) / count, config.timestep_sampling, config.timestep_shift
            ),
            noise=torch.randn(x0.shape, generator=generator),
        )

    @torch.no_grad()
    def loss(self, network: Network, device: torch.device, dtype: torch.dtype) -> float:
        """The mean loss over all draws, of which each of several processes takes its share."""
        total = torch.zeros((), dtype=torch.float64)
        size = self._config.batch_size
        for start in shard(range(0, len(self._draws.labels), size)):
            drawn = {k: v for k, v in vars(self._draws).items() if v is not None}
            part = {k: v[start : start + size] for k, v in drawn.items()}
            batch = Batch(**part).to(device)
            total += (
                batch_loss(network, batch, self._task, self._config, dtype).double().sum().cpu()
            )
        return sum_over_processes(total).item() / len(self._draws.labels)
