"""A few steps of a training on random latents: what a step takes, and whether two are the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from smidgen.data.latents import LatentSet
from smidgen.methods.build import build_delta
from smidgen.models.base import Base
from smidgen.models.labels import labels_of
from smidgen.models.prompts import PROMPTS
from smidgen.training.captions import read_in_the_step
from smidgen.training.config import CLIP_REWARD, RunConfig
from smidgen.training.described import settled
from smidgen.training.loop import TrainingResult, train_delta
from smidgen.training.objective import Task
from smidgen.training.reward_targets import rewarded


def rehearse(
    base: Base,
    config: RunConfig,
    num_classes: int,
    folder: Path,
    *,
    steps: int,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainingResult:
    """The first steps of such a training in `folder`, on noise as latents, the same each time.

    Raises: as `train_delta`.
    """
    config = settled(base, config.resolved())
    num_classes = max(1, num_classes)  # of a list of prompts
    training = replace(
        config.training,
        steps=steps,
        warmup_steps=0,
        checkpoint_every=steps,
        validation_share=0.0,
        keep="last",
        patience=None,
        trackers=(),
    )
    count = max(num_classes, training.batch_size * training.gradient_accumulation)
    noise = torch.randn((count, 1, *base.latent_shape), generator=torch.Generator().manual_seed(0))
    latents = LatentSet(
        mean=noise,
        std=torch.zeros_like(noise),
        class_numbers=torch.arange(count) % num_classes,
        names=tuple(f"{number}" for number in range(count)),
    )
    if training.prior_weight:
        latents = latents.with_class_images(latents)
    classes = [f"class {number}" for number in range(num_classes)]
    if not training.train_labels:
        classes = list(base.class_names[:num_classes])
    reads_prompts = base.conditioner is not None
    with ExitStack() as stack:
        reader = None
        if config.encodes_in_step and base.conditioner is not None:
            reader = stack.enter_context(base.conditioner.open())
        delta = build_delta(
            config.method,
            base,
            config.method_config,
            () if reads_prompts else classes,
            torch.Generator(),
            training={PROMPTS: {"classes": classes}} if reads_prompts else {},
            encoders=reader.encoders if reader is not None and config.trains_encoders else (),
            token=config.token,
            train_labels=training.train_labels,
        )
        task = None if reader is None else read_in_the_step(base, delta, config, reader)
        if training.objective == CLIP_REWARD:
            own = replace(training.reward, target="images")  # classes of noise have no prompts
            plain = Task(process=base.process, labels=labels_of(base, delta))
            task = rewarded(base, delta, own, plain, latents)
        return train_delta(base, delta, latents, training, folder, on_step=on_step, task=task)
