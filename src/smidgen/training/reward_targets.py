"""What the images of each label are rewarded for: to be like the label's prompt, or like the
training images that have it. K labels, D dimensions of CLIP's embeddings.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from smidgen.core.delta import Delta
from smidgen.data.latents import LatentSet
from smidgen.errors import UsageError
from smidgen.evaluation.contexts import world_of
from smidgen.evaluation.features import Extractor, load_extractor
from smidgen.evaluation.protocol import unseen
from smidgen.models.base import Base
from smidgen.models.labels import class_prompts
from smidgen.sampling.config import SamplingConfig
from smidgen.training.objective import Task
from smidgen.training.reward import Reward, embed
from smidgen.training.reward_config import RewardConfig

IMAGES_AT_A_TIME = 64

logger = logging.getLogger(__name__)


def rewarded(
    base: Base, delta: Delta, config: RewardConfig, task: Task, latents: LatentSet
) -> Task:
    """The task of a training of this delta with its reward, whose CLIP is loaded here.

    Raises: UsageError for images without a caption where others have one, or as
        `SamplingConfig.resolved`; SmidgenError for a CLIP that is not there.
    """
    clip = load_extractor(
        config.features or world_of(base).features, base.device, weights=config.weights
    )
    sampling = SamplingConfig(
        sampler=config.sampler or base.process.preview_sampler,
        steps=config.steps,
        guidance=config.guidance,
    )
    labels = _labels_of_images(task, latents)
    if config.target == "images":
        targets = _of_images(clip, base, labels, latents, len(task.labels.names))
    else:
        prompts = task.labels.names if task.choices is not None else class_prompts(base, delta)
        if warning := unseen(clip, prompts):
            logger.warning("%s", warning)
        assert clip.text is not None, "a CLIP reads texts"
        targets = clip.text(prompts)
    reward = Reward(
        process=base.process,
        sampling=sampling.resolved(base),
        last_steps=config.last_steps,
        scale=1.0 if base.family.guidance == "embedded" else config.guidance,
        decode=base.codec.decode,
        clip=clip,
        targets=targets.to(base.device, torch.float32),
    )
    return replace(task, reward=reward)


def _labels_of_images(task: Task, latents: LatentSet) -> list[Tensor]:
    """The labels of each image."""
    if task.choices is None:
        return list(latents.class_numbers[:, None])
    found = list(task.choices.labels.split(task.choices.counts.tolist()))
    bare = [name for name, own in zip(latents.names, found, strict=True) if task.labels.null in own]
    if bare:
        raise UsageError(
            f"{bare[0]} has no caption, and {len(bare)} image(s) in all: nothing says what they "
            "are rewarded for; write it, or give --captions none"
        )
    return found


@torch.no_grad()
def _of_images(
    clip: Extractor, base: Base, labels: list[Tensor], latents: LatentSet, count: int
) -> Tensor:
    """The direction (K, D) of the mean embedding of the images of each label, as the codec gives
    them back; held-out ones are among them, as their validation loss is that of the same targets.
    """
    sums = torch.zeros(count, clip.dim)
    for bucket in latents.in_buckets(torch.arange(len(latents))):
        for images in bucket.split(IMAGES_AT_A_TIME):
            mean = latents.mean[images, torch.zeros_like(images)].float().to(base.device)
            seen = embed(clip, base.codec.decode(mean)).cpu()
            for image, one in zip(images.tolist(), seen, strict=True):
                sums[labels[image]] += one
    return functional.normalize(sums, dim=1)
