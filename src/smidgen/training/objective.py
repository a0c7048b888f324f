"""What is trained: noised latents with their labels, and the loss of the network on them, or on
the images that it draws from the noise (reward.py).

B images of one forward pass, N in all. Labels are numbers throughout; what one means to the
network, a class or a prompt, is looked up when it is called.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.data.latents import LatentSet
from smidgen.diffusion.objective import drop_labels
from smidgen.diffusion.process import Process
from smidgen.hosts.family import Condition
from smidgen.models.calling import Network
from smidgen.models.labels import Labels
from smidgen.processes import rank
from smidgen.training.config import LABEL_DROPOUT, TrainingConfig
from smidgen.training.randomness import Streams
from smidgen.training.reward import Reward
from smidgen.training.texts import Texts


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The labels that each of N images may be trained with: image i has `counts[i]` of them, at
    least one, in `labels` from `starts[i]` on.
    """

    labels: Tensor
    starts: Tensor
    counts: Tensor

    def draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """One label for each of these images (B,), all of an image's being as likely."""
        share = torch.rand(len(images), generator=generator, dtype=torch.float64)
        counts = self.counts[images]
        return self.labels[self.starts[images] + (share * counts).long().clamp(max=counts - 1)]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network is trained for, whoever it is: a process, and what labels mean.

    `choices` None: the label of an image is the number of its class. `shown`: so many of the first
    labels are what previews show, None: any. `texts` None: what labels mean is known before the
    step, else it is made in the step.
    """

    process: Process
    labels: Labels
    choices: Choices | None = None
    shown: int | None = None
    texts: Texts | None = None
    reward: Reward | None = None

    def label(self, images: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
        """The labels (B,) of images of these classes; with several to choose from, drawn."""
        return classes if self.choices is None else self.choices.draw(images, generator)

    def condition(self, labels: Tensor, orders: Tensor | None) -> Condition:
        """What the network is told of images with these labels, tags shuffled by these `orders`."""
        if self.texts is None:
            return self.labels.conditions(labels)
        return self.texts.conditions(labels, orders)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One forward pass: the images' numbers, clean latents, noise, timesteps, labels (null where
    dropped), how tags are shuffled (None: they stand as they are), and how each image lies in its
    picture (`LatentSet.placements`; None: as the condition has it).
    """

    images: Tensor
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    labels: Tensor
    orders: Tensor | None = None
    placements: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        return Batch(**{name: value.to(device) for name, value in tensors.items()})


def draw_batch(
    latents: LatentSet,
    indices: Tensor,
    streams: Streams,
    task: Task,
    config: TrainingConfig,
) -> Batch:
    """A fresh draw for these images: latents from their posteriors, label dropout once for each
    image, a timestep and noise. Everything is drawn on the CPU.

    Of several processes each draws for the images of all, and returns its own rows: together they
    train on what one process with their batches as one would.
    """
    own = slice(rank() * config.rows, (rank() + 1) * config.rows)
    x0, classes = latents.draw(indices, streams.latents, own)
    labels = task.label(indices, classes, streams.labels)
    dropped = LABEL_DROPOUT if config.label_dropout is None else config.label_dropout
    labels = drop_labels(labels, task.labels.null, dropped, streams.labels)
    times = task.process.draw_times(
        len(indices), streams.timesteps, config.timestep_sampling, config.timestep_shift
    )
    orders = None if task.texts is None else task.texts.orders(len(indices), streams.tags)
    noise = torch.randn((len(indices), *x0.shape[1:]), generator=streams.noise)
    return Batch(
        images=indices[own],
        latents=x0,
        labels=labels[own],
        timesteps=times[own],
        noise=noise[own],
        orders=None if orders is None else orders[own],
        placements=None if latents.placements is None else latents.placements[indices[own]],
    )


def batch_loss(
    network: Network, batch: Batch, task: Task, config: TrainingConfig, dtype: torch.dtype
) -> Tensor:
    """The loss of each image (B,); `dtype` is the base's, in which the network wants its input."""
    if task.reward is not None:

        def predicted(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            output = network(x.to(dtype), t, task.condition(labels, None))
            return task.process.predicted(output, x, t)

        return task.reward.losses(predicted, batch.labels, task.labels.null, batch.noise)
    x0, t, noise = batch.latents, batch.timesteps, batch.noise
    x_t = task.process.noised(x0, t, noise)
    condition = task.condition(batch.labels, batch.orders)
    if batch.placements is not None and "time_ids" in condition:
        condition = {**condition, "time_ids": batch.placements.to(condition["time_ids"])}
    output = network(x_t.to(dtype), t, condition)
    return task.process.loss(
        output, x0, x_t, t, noise, vlb_weight=config.vlb_weight, min_snr=config.min_snr
    )


def total_loss(losses: Tensor, config: TrainingConfig) -> Tensor:
    """The mean of the images' losses (B,); with images of a subject's class, which are every second
    one, the subject's mean and, weighted, theirs (DreamBooth, arXiv 2208.12242, equation 2).
    """
    if not config.prior_weight:
        return losses.mean()
    subject, of_class = losses.view(-1, 2).mean(dim=0)
    return subject + config.prior_weight * of_class
