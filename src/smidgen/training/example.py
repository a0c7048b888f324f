"""Inputs of the right shapes for a network, from its configuration alone: to count what it needs.

B images, L tokens of text. Real values are never looked at.
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
from smidgen.models.dit import DiT
from smidgen.models.labels import Labels
from smidgen.training.objective import Task

# Tokens of text that the released pipelines give each class of networks.
TEXT_TOKENS = {
    "UNet2DConditionModel": 77,
    "PixArtTransformer2DModel": 300,
    "SD3Transformer2DModel": 333,  # 77 of CLIP, 256 of T5
    "FluxTransformer2DModel": 512,
    "Flux2Transformer2DModel": 512,
    "SanaTransformer2DModel": 300,
    "QwenImageTransformer2DModel": 512,
}
TEXT_WIDTHS = ("cross_attention_dim", "caption_channels", "joint_attention_dim")
PACKED = {"FluxTransformer2DModel": 4, "QwenImageTransformer2DModel": 4}  # latents to an input
SIDES = {"Flux2Transformer2DModel": 64}  # latent pixels a side where no sample_size says it
USUAL_SIDE = 128


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
    if isinstance(denoiser, DiT):
        shape = (config.in_channels, config.image_size, config.image_size)
        task = Task(process=Diffusion(schedule=Schedule.linear()), labels=Labels(names=()))
        return Example(latent_shape=shape if base is None else base.latent_shape, task=task)
    name = type(denoiser).__name__
    side = config.get("sample_size") or SIDES.get(name, USUAL_SIDE)
    side = side if isinstance(side, int) else side[0]
    shape = (config["in_channels"] // PACKED.get(name, 1), side, side)
    return Example(
        latent_shape=shape if base is None else base.latent_shape,
        condition=condition_shapes(config, TEXT_TOKENS.get(name, 77)),
        task=Task(
            process=Flow(schedule=FlowSchedule(), num_tokens=1)
            if family.parameterisation == "flow"
            else Diffusion(schedule=Schedule.linear(), prediction="epsilon"),
            labels=Labels(names=()),
        ),
    )


def condition_shapes(config: Mapping[str, Any], num_tokens: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one image's condition tensors, by the widths that a network's configuration has."""
    widths = [config[key] for key in TEXT_WIDTHS if isinstance(config.get(key), int)]
    shapes: dict[str, tuple[int, ...]] = {"text": (num_tokens, widths[0] if widths else 1)}
    shapes["text"] = (num_tokens, config.get("caption_channels") or shapes["text"][1])
    if config.get("pooled_projection_dim"):
        shapes["pooled"] = (config["pooled_projection_dim"],)
    if config.get("addition_embed_type") == "text_time":
        times = 6 * config["addition_time_embed_dim"]
        shapes["pooled"] = (config["projection_class_embeddings_input_dim"] - times,)
        shapes["time_ids"] = (6,)
    return shapes
