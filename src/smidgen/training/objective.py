"""What is trained: noised latents with their labels, and the loss of the network on them.

B images of one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.data.latents import LatentSet
from smidgen.diffusion.objective import add_noise, drop_labels, hybrid_loss
from smidgen.diffusion.schedule import Schedule
from smidgen.training.config import TrainingConfig
from smidgen.training.randomness import Streams

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, timesteps, labels) -> output


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One forward pass: clean latents, noise, timesteps and labels (null where dropped)."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


def draw_batch(
    latents: LatentSet,
    indices: Tensor,
    streams: Streams,
    *,
    num_timesteps: int,
    null_label: int,
    label_dropout: float,
) -> Batch:
    """A fresh draw for these images: latents from their posteriors, label dropout once for each
    image, a timestep and noise. Everything is drawn on the CPU.
    """
    x0, labels = latents.draw(indices, streams.latents)
    return Batch(
        latents=x0,
        labels=drop_labels(labels, null_label, label_dropout, streams.labels),
        timesteps=torch.randint(num_timesteps, (len(x0),), generator=streams.timesteps),
        noise=torch.randn(x0.shape, generator=streams.noise),
    )


def batch_loss(
    network: Network,
    batch: Batch,
    schedule: Schedule,
    config: TrainingConfig,
    dtype: torch.dtype,
) -> Tensor:
    """L_hybrid of each image (B,); `dtype` is the base's, in which the network wants its input."""
    x_t = add_noise(schedule, batch.latents, batch.timesteps, batch.noise)
    output = network(x_t.to(dtype), batch.timesteps, batch.labels)
    return hybrid_loss(
        output,
        batch.latents,
        x_t,
        batch.timesteps,
        batch.noise,
        schedule,
        vlb_weight=config.vlb_weight,
        min_snr=config.min_snr,
    )
