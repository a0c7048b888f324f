"""What is trained: noised latents with their labels, and the loss of the network on them.

B images of one forward pass. Labels are numbers throughout; what one means to the network, a class
or a prompt, is looked up when it is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smidgen.data.latents import LatentSet
from smidgen.diffusion.flow import FlowSchedule, flow_loss, interpolate, shift_sigmas, sigmas_at
from smidgen.diffusion.objective import add_noise, drop_labels, hybrid_loss, v_loss
from smidgen.diffusion.schedule import Schedule
from smidgen.hosts.family import Condition, Family
from smidgen.models.base import Base
from smidgen.models.conditioner import Conditions, labels_alone
from smidgen.models.schedulers import Objective
from smidgen.training.config import TrainingConfig
from smidgen.training.randomness import Streams

Network = Callable[[Tensor, Tensor, Condition], Tensor]  # (x_t, t, condition) -> output

# A shift that depends on the steps of sampling (FLUX.2) is taken for this many, the pipeline's own.
USUAL_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network is trained for, whoever it is.

    `conditions` says what labels mean, `null_label` the one of no class. Sigmas of a flow are
    shifted by the factor `shift`, as where the base is sampled.
    """

    objective: Objective = "hybrid"
    schedule: Schedule | FlowSchedule
    null_label: int
    conditions: Conditions = labels_alone
    shift: float = 1.0

    def times(self, quantiles: Tensor, config: TrainingConfig) -> Tensor:
        """t (B,) at these quantiles (B,), 0 to 1, of what is drawn in training: int64 steps, or
        float32 sigmas of a flow.
        """
        schedule = self.schedule
        flow = isinstance(schedule, FlowSchedule)
        sampling = config.timestep_sampling or ("logit-normal" if flow else "uniform")
        if not flow and sampling == "uniform":
            count = schedule.num_steps
            return (quantiles * count).long().clamp(max=count - 1)
        shift = self.shift if config.timestep_shift is None else config.timestep_shift
        sigmas = shift_sigmas(sigmas_at(quantiles, sampling), shift)
        return sigmas if flow else schedule.rows_at(sigmas)

    def draw_times(self, count: int, generator: torch.Generator, config: TrainingConfig) -> Tensor:
        """t (B,) of a training step."""
        if isinstance(self.schedule, Schedule) and config.timestep_sampling != "logit-normal":
            return torch.randint(self.schedule.num_steps, (count,), generator=generator)
        drawn = torch.rand(count, generator=generator, dtype=torch.float64)
        return self.times(drawn, config)


def task_of(base: Base, null_label: int, conditions: Conditions = labels_alone) -> Task:
    """The task of `base`, where labels count up to `null_label`, not included."""
    shift = 1.0
    if isinstance(base.schedule, FlowSchedule):
        shift = base.schedule.factor(base.num_tokens, USUAL_STEPS)
    return Task(
        objective=base.objective,
        schedule=base.schedule,
        null_label=null_label,
        conditions=conditions,
        shift=shift,
    )


def calling(family: Family, denoiser: nn.Module, guidance: float | None = None) -> Network:
    """The denoiser as its family calls it; a guidance that it has as an input is 1 or this."""
    if family.guidance != "embedded":
        return lambda x, t, condition: family.predict(denoiser, x, t, condition)
    scale = 1.0 if guidance is None else guidance

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        told = torch.full((len(x),), scale, dtype=torch.float32, device=x.device)
        return family.predict(denoiser, x, t, {**condition, "guidance": told})

    return network


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
    task: Task,
    config: TrainingConfig,
) -> Batch:
    """A fresh draw for these images: latents from their posteriors, label dropout once for each
    image, a timestep and noise. Everything is drawn on the CPU.
    """
    x0, labels = latents.draw(indices, streams.latents)
    return Batch(
        latents=x0,
        labels=drop_labels(labels, task.null_label, config.label_dropout, streams.labels),
        timesteps=task.draw_times(len(x0), streams.timesteps, config),
        noise=torch.randn(x0.shape, generator=streams.noise),
    )


def batch_loss(
    network: Network, batch: Batch, task: Task, config: TrainingConfig, dtype: torch.dtype
) -> Tensor:
    """The loss of each image (B,); `dtype` is the base's, in which the network wants its input."""
    x0, t, noise = batch.latents, batch.timesteps, batch.noise
    condition = task.conditions(batch.labels)
    if isinstance(task.schedule, FlowSchedule):
        x_t = interpolate(x0, t, noise)
        return flow_loss(_alone(network(x_t.to(dtype), t, condition), x0), x0, noise)
    x_t = add_noise(task.schedule, x0, t, noise)
    output = network(x_t.to(dtype), t, condition)
    if task.objective == "v":
        output = _alone(output, x0)
        return v_loss(output, x0, t, noise, task.schedule, min_snr=config.min_snr)
    return hybrid_loss(
        output if task.objective == "hybrid" else _alone(output, x0),
        x0,
        x_t,
        t,
        noise,
        task.schedule,
        vlb_weight=config.vlb_weight,
        min_snr=config.min_snr,
    )


def _alone(output: Tensor, x0: Tensor) -> Tensor:
    """The prediction without variance channels behind it."""
    return output[:, : x0.shape[1]]
