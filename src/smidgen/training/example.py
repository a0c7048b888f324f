"""Inputs of the right shapes for a network, from its configuration alone: to count what it needs.
Which shapes those are is known to its family. Real values are never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.diffusion.flow import FlowSchedule
from smidgen.diffusion.process import Diffusion, Flow
from smidgen.diffusion.schedule import Schedule
from smidgen.hosts.host import find_family
from smidgen.models.base import Base
from smidgen.models.labels import Labels
from smidgen.training.objective import Task


@dataclass(frozen=True, kw_only=True)
class Example:
    """Shapes of one image's latent and condition, and the task of the network."""

    latent_shape: tuple[int, ...]
    task: Task
    condition: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def with_rows(self, count: int) -> Task:
        """The task with a condition that fits any labels of `count` images."""
        if not self.condition:
            return self.task
        rows = {name: torch.zeros(count, *shape) for name, shape in self.condition.items()}

        def conditions(labels: Tensor) -> Mapping[str, Tensor]:
            return rows

        return Task(process=self.task.process, labels=Labels(names=(), conditions=conditions))


def example_of(denoiser: nn.Module, base: Base | None = None) -> Example:
    """The example of a network, of the size that it was trained at or that `base` was loaded for.

    Raises: SmidgenError for a class that no host calls.
    """
    family = find_family(denoiser)
    config: Any = denoiser.config
    shape = family.latent_shape(config) if base is None else base.latent_shape
    if family.encode is None:
        task = Task(process=Diffusion(schedule=Schedule.linear()), labels=Labels(names=()))
        return Example(latent_shape=shape, task=task)
    return Example(
        latent_shape=shape,
        condition=family.condition_shapes(config),
        task=Task(
            process=Flow(schedule=FlowSchedule(), num_tokens=1)
            if family.parameterisation == "flow"
            else Diffusion(schedule=Schedule.linear(), prediction="epsilon"),
            labels=Labels(names=()),
        ),
    )
