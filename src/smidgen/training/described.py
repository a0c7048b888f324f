"""What a run is before an image is read: its recipe, and whether base and settings go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from smidgen.core.sharding import group_of
from smidgen.core.storage import outside
from smidgen.diffusion.process import Process
from smidgen.errors import UsageError
from smidgen.evaluation.names import check_names
from smidgen.files.settings import settings_of
from smidgen.files.standing import Standing
from smidgen.hosts.family import Family
from smidgen.methods import parts_of
from smidgen.models.base import Base
from smidgen.models.dit import DiT
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sizes import ImageSize, Sides
from smidgen.training.buckets import sizes_of
from smidgen.training.config import CLIP_REWARD, RunConfig, TrainingConfig
from smidgen.training.precision import with_precision
from smidgen.training.recipe import check_recipe
from smidgen.training.reward_config import check_reward
from smidgen.training.runtime import check_runtime
from smidgen.training.start import check_start
from smidgen.training.subject import check_folders

# those of a run, besides the ones that come first, as its recipe lists them
OF_SUBJECT = ("token", "class_name", "instance_prompt", "class_data", "class_images")
OF_TAGS = ("shuffle_tags", "keep_tags")
OTHERS = (
    "task",
    *OF_SUBJECT,
    "class_guidance",
    "captions",
    *OF_TAGS,
    "resize",
    "buckets",
    "flip",
    "cache_precision",
    "max_bad_share",
    "init",
    "init_other_base",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Described:
    """What is known of a base without its weights, and what a run can be judged by."""

    name: str
    given: Mapping[str, Any]
    image_size: ImageSize | None
    sides: Sides | None
    denoiser: nn.Module
    latent_shape: Sequence[int]
    family: Family
    process: Process
    device: torch.device


def settled(base: Base | Described, config: RunConfig, *, force: bool = False) -> RunConfig:
    """With the precision that "auto" is for this base, or of the run in the output that goes on."""
    folder = None if force else config.output
    places = (base.denoiser, base.latent_shape, base.device, folder)
    return dataclasses.replace(config, training=with_precision(config.training, *places))


def recipe_of(base: Base | Described, config: RunConfig) -> dict[str, Any]:
    """All settings of a run in one flat table; `config` is resolved and `settled`."""
    values: dict[str, Any] = {"base": base.name, **base.given, "data": str(config.data)}
    values |= {"layout": config.layout, "split": config.split, "method": config.method}
    values |= dataclasses.asdict(config.method_config) | {
        "image_size": None if base.image_size is None else base.image_size.plain
    }
    values |= {name: getattr(config, name) for name in OTHERS}
    return values | dataclasses.asdict(config.training)


def check_run(base: Base | Described, config: RunConfig, *, force: bool = False) -> Standing:
    """Everything that can be wrong and is cheap to see, and how the run stands to what is in its
    folder; nothing is changed.

    Raises: UsageError, SmidgenError.
    """
    check_folders(config)
    check_names(config.training.metrics_features, None)
    _check_settings(base, config)
    check_runtime(config.training, base.device)
    found = check_recipe(config.output, recipe_of(base, config), defaults_of(config), force=force)
    if found == "new":
        check_start(config.init, config.method, other_base=config.init_other_base)
    return found


def defaults_of(config: RunConfig) -> dict[str, Any]:
    """What settings are that a recipe of an earlier smidgen does not know yet."""
    found = settings_of(type(config.method_config), TrainingConfig)
    found |= {name: one for name, one in settings_of(RunConfig).items() if name in OTHERS}
    return {name: setting.default for name, setting in found.items()}


def _check_settings(base: Base | Described, config: RunConfig) -> None:
    """Settings that this base has no use for are refused, not ignored."""
    sizes_of(base, config)
    _check_frozen(base, config)
    training, reads_prompts = config.training, base.family.encode is not None
    is_sharded = group_of(base.denoiser) is not None
    if training.objective == CLIP_REWARD:
        check_reward(base, config)
    if training.compile and outside(base.denoiser):
        given = "shard" if is_sharded else "offload"
        raise UsageError(f"compile and {given} do not go together; give one of them")
    if is_sharded and "full" in parts_of(config.method):
        raise UsageError(
            f"shard is of no use to {config.method}, which trains a copy of all weights in every "
            "process; leave it out"
        )
    if config.task == DREAMBOOTH and not reads_prompts:
        raise UsageError(
            f'task {DREAMBOOTH} is of no use to base "{base.name}", which reads no prompts; give '
            "one that does"
        )
    if config.trains_encoders and not training.train_text_encoder and not reads_prompts:
        raise UsageError(
            f'{config.method} is of no use to base "{base.name}", which reads no prompts; choose '
            "another method"
        )
    if reads_prompts and not training.train_labels:
        raise UsageError(
            f'train_labels is of no use to base "{base.name}", which has no label table; leave it '
            "out"
        )
    used = {
        "prompt": reads_prompts,
        "train_text_encoder": reads_prompts,
        "embedded_guidance": base.family.guidance == "embedded",
        "activations": not reads_prompts,
    }
    for name, of_use in used.items():
        if getattr(training, name) not in (None, False, "exact") and not of_use:
            raise UsageError(f'{name} is of no use to base "{base.name}"; leave it out')
    shifted = base.process.is_shifted(training.timestep_sampling)
    if training.timestep_shift is not None and not shifted:
        raise UsageError(
            f'timestep_shift is of no use where every step of base "{base.name}" is drawn alike; '
            'leave it out, or give timestep_sampling "logit-normal" too'
        )


def _check_frozen(base: Base | Described, config: RunConfig) -> None:
    """Raises: UsageError for products in 8 bit where no weights of a DiT are frozen."""
    asked = config.training.frozen_precision
    if asked == "exact":
        return
    if not isinstance(base.denoiser, DiT):
        raise UsageError(
            f'frozen_precision {asked} is for a DiT of smidgen\'s own and base "{base.name}" is '
            "none; leave it out"
        )
    if "full" in parts_of(config.method):
        raise UsageError(
            f"frozen_precision {asked} is of no use to {config.method}, which leaves no weight "
            "frozen; leave it out"
        )
