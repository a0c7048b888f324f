"""The validation loss: held-out images with noise and timesteps that never change.

The loss of single timesteps differs a hundredfold, so the timesteps are stratified: one in each of
equally wide parts of the schedule. Two validations then differ by the weights alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from smidgen.data.latents import LatentSet
from smidgen.data.split import hold_out
from smidgen.errors import UsageError
from smidgen.models.calling import Network
from smidgen.processes import shard, sum_over_processes, world_size
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
        buckets = latents.in_buckets(chosen)
        chosen = torch.cat(buckets)
        drawn = [latents.draw(images, generator)[0] for images in buckets]
        within = torch.rand(count, generator=generator, dtype=torch.float64)
        strata = torch.randperm(count, generator=generator)
        classes = latents.class_numbers[chosen]
        labels = task.label(chosen, classes, generator_for(config.seed, "validation labels"))
        times = task.process.times(
            (strata + within) / count, config.timestep_sampling, config.timestep_shift
        )
        self._task = task
        self._config = config
        counts = [len(images) for images in buckets]
        parts = zip(buckets, drawn, labels.split(counts), times.split(counts), strict=True)
        self._draws = [
            Batch(
                images=images,
                latents=x0,
                labels=shown,
                timesteps=t,
                noise=torch.randn(x0.shape, generator=generator),
                placements=None if latents.placements is None else latents.placements[images],
            )
            for images, x0, shown, t in parts
        ]

    @torch.no_grad()
    def loss(
        self, network: Network, device: torch.device, dtype: torch.dtype, *, in_step: bool = False
    ) -> float:
        """The mean loss over all draws, of which each of several processes takes its share. In step
        all call the network equally often, as they must where each has a part of the weights.
        """
        total = torch.zeros((), dtype=torch.float64)
        size = self._config.batch_size
        parts = [
            {name: v[start : start + size] for name, v in vars(draws).items() if v is not None}
            for draws in self._draws
            for start in range(0, len(draws.labels), size)
        ]
        own = shard(range(len(parts)))
        idle = len(parts[:: world_size()]) - len(own) if in_step else 0
        for number in (*own, *[None] * idle):
            batch = Batch(**parts[number or 0]).to(device)
            losses = batch_loss(network, batch, self._task, self._config, dtype)
            if number is not None:
                total += losses.cpu().double().sum()
        return sum_over_processes(total).item() / sum(len(one.labels) for one in self._draws)


def held_out_of(
    class_numbers: Tensor, contents: Sequence[str], config: TrainingConfig, *, has_captions: bool
) -> tuple[Tensor, Tensor]:
    """The numbers of the images that are trained on, and of those held out: of every class some,
    but of images that are told apart by their captions any.

    Raises: UsageError where nothing is left to judge by, and the settings ask for a judge.
    """
    trained, held_out = hold_out(
        torch.zeros_like(class_numbers) if has_captions else class_numbers,
        share=config.validation_share,
        seed=config.seed,
        contents=contents,
    )
    judged = "keep is best" if config.keep == "best" else f"patience is {config.patience}"
    needs_judge = config.keep == "best" or config.patience is not None
    if needs_judge and not (len(held_out) or config.metrics_every):
        raise UsageError(
            f"{judged} and none of the {len(class_numbers)} images is held out to judge by; "
            "raise validation_share, or give metrics_every"
        )
    return trained, held_out
