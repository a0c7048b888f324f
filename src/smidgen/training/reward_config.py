"""The settings of the objective clip-reward; what they mean is in reward.py. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from smidgen.errors import UsageError
from smidgen.files.checks import check_integer, check_number
from smidgen.files.settings import check_choices
from smidgen.sampling.config import check_steps

if TYPE_CHECKING:
    from smidgen.models.base import Base
    from smidgen.training.config import RunConfig
    from smidgen.training.described import Described

# those that draw nothing on the way, so that an image has a gradient to all that made it
RewardSampler = Literal["ddim", "dpm++", "euler"]


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """For the objective clip-reward: who judges the images, by what, and how they are drawn.

    Raises: UsageError for a value that makes no sense.
    """

    features: Literal["clip-b32", "clip-l14", "clip-glyphs"] | None = None
    """The CLIP that judges; none: clip-glyphs (of glyphs-text) or clip-b32."""
    weights: Path | None = None
    """Its folder; none: where such weights are usually kept, else fetched once."""
    target: Literal["prompt", "images"] = "prompt"
    """What an image is to be like: the prompt that it is drawn for, or the training images that
    have this prompt or class."""
    steps: int = 25
    """Sampling steps of an image."""
    last_steps: int = 1
    """Through so many of them, the last ones, gradients flow; memory and time grow with it."""
    sampler: RewardSampler | None = None
    """none: dpm++, or euler for flow-matching bases."""
    guidance: float = 1.5
    """Scale of classifier-free guidance, as for sample; of a base with the scale as an input
    (FLUX) embedded_guidance is in its place."""

    def __post_init__(self) -> None:
        check_integer("reward.steps", self.steps)
        check_integer("reward.last_steps", self.last_steps)
        check_number("reward.guidance", self.guidance)
        check_choices(self)
        if self.last_steps > self.steps:
            raise UsageError(
                f"reward.last_steps is {self.last_steps} and reward.steps {self.steps}; expected "
                "no more of the last steps than there are"
            )


def check_reward(base: Base | Described, config: RunConfig) -> None:
    """Raises: UsageError for a run of this objective that lacks what it is rewarded by, or whose
    images this base does not draw.
    """
    own, alone = config.training.reward, config.has_prompts_alone
    if own.target == "prompt" and base.family.encode is None:
        raise UsageError(
            f'reward.target is "prompt" and base "{base.name}" reads no prompts; give '
            "reward.target images, or a base that reads prompts"
        )
    if alone and base.family.encode is None:
        raise UsageError(
            f'{config.data} has prompts and base "{base.name}" reads none; give a folder of images'
        )
    if alone and own.target == "images":
        raise UsageError(
            f'reward.target is "images" and {config.data} has prompts alone; give a folder of '
            "images, or reward.target prompt"
        )
    if alone and config.training.metrics_every:
        raise UsageError(
            f"metrics_every compares with images and {config.data} has prompts alone; leave it out"
        )
    if own.weights is not None and not own.weights.exists():
        raise UsageError(f"no such folder of a CLIP: {own.weights}; give another reward.weights")
    if config.encodes_in_step:
        raise UsageError(
            "objective clip-reward draws many steps with texts that are read before; leave out "
            "shuffle_tags, train_text_encoder and textual-inversion"
        )
    check_steps(base.process, base.name, own.sampler or base.process.preview_sampler, own.steps)
