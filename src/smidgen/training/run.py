"""One run: from a folder of images and settings to RUN/delta.safetensors.

scan -> latent cache -> method -> train_delta, and around it the rule of recipe.py.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from smidgen.core.delta import Delta
from smidgen.data.cache import LatentCache
from smidgen.data.folder import check_bad_share
from smidgen.data.images import Mode
from smidgen.data.latents import LatentSet
from smidgen.data.layouts import open_images, resolve_split
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.writing import write_json
from smidgen.methods import resolve
from smidgen.methods.build import build_delta
from smidgen.models.base import Base
from smidgen.training.config import DEFAULT_PROMPT, TrainingConfig
from smidgen.training.journal import counting_bar
from smidgen.training.loop import Evaluator, TrainingResult, train_delta
from smidgen.training.network import PROMPTS, class_names, class_prompts
from smidgen.training.objective import task_of
from smidgen.training.randomness import generator_for
from smidgen.training.recipe import begin_run, check_recipe, is_finished
from smidgen.training.runtime import check_runtime
from smidgen.training.state import AGAIN

logger = logging.getLogger(__name__)

# settings whose default depends on the kind of base: a delta names them where they were given
BY_BASE = ("prompt", "timestep_sampling", "timestep_shift", "embedded_guidance")

# (delta under training, run folder) -> what to run now and then
MakeEvaluators = Callable[[Delta, Path], Sequence[Evaluator]]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What a run trains on and how; with the base, all that its result depends on.

    `method_config` is the method's own Config. `layout` and `split`: how `data` is read, as
    `open_images` takes them.
    """

    data: Path
    layout: str = "folder"
    split: str | None = None
    method: str
    method_config: Any
    image_size: int
    resize: Mode = "crop"
    flip: bool = False
    max_bad_share: float = 0.05
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise UsageError(f"max_bad_share is {self.max_bad_share}; expected 0 to 1")
        # the default split is written out, so that naming it is no other setting
        object.__setattr__(self, "split", resolve_split(self.layout, self.split))

    def recipe(self, base: Base) -> dict[str, Any]:
        """All settings in one flat table."""
        values: dict[str, Any] = {"base": base.name, **base.given, "data": str(self.data)}
        values |= {"layout": self.layout, "split": self.split, "method": self.method}
        values |= dataclasses.asdict(self.method_config)
        for name in ("image_size", "resize", "flip", "max_bad_share"):
            values[name] = getattr(self, name)
        return values | dataclasses.asdict(self.training)


def fine_tune(
    base: Base,
    config: RunConfig,
    folder: Path,
    *,
    force: bool = False,
    cache_dir: Path | None = None,
    progress: bool = False,
    make_evaluators: MakeEvaluators | None = None,
) -> Delta:
    """Train a delta of `base` on a folder of images and return its average.

    A run that is finished already only returns it. With `force` an earlier run in `folder` is
    removed, once everything that can be checked has been.

    Raises: UsageError, SmidgenError as everything that this calls; Interrupted.
    """
    check_run(base, config, folder, force=force)
    if not force and is_finished(folder, config.training.steps):
        logger.info("%s is finished: %d steps", folder, config.training.steps)
        delta = Delta.load(folder / "delta.safetensors")
        delta.check_base(base.fingerprint, base.name)
        return delta
    latents = read_latents(base, config, cache_dir=cache_dir, progress=progress)
    delta = fresh_delta(base, config, latents)
    conditions = base.conditions(class_prompts(base, delta))
    begin_run(folder, config.recipe(base), force=force)
    if latents.folder is not None:
        write_json(latents.folder.skipped(), folder / "bad_files.json", AGAIN)
        logger.info("%s", latents.report())
    evaluators = make_evaluators(delta, folder) if make_evaluators is not None else ()
    begun = time.time()
    result = train_delta(
        base,
        delta,
        latents,
        config.training,
        folder,
        method=config.method,
        progress=progress,
        evaluators=evaluators,
        task=task_of(base, len(class_names(base, delta)), conditions),
    )
    write_json(_report(base, config, latents, result, begun), folder / "run.json", AGAIN)
    return result.delta.to(base.device)


def check_run(base: Base, config: RunConfig, folder: Path, *, force: bool = False) -> None:
    """Everything that can be wrong and is cheap to see; nothing is changed.

    Raises: UsageError, SmidgenError.
    """
    if config.image_size != base.image_size:
        raise UsageError(
            f"image size {config.image_size}: the base was loaded for {base.image_size}; give "
            "load_base the size"
        )
    if folder.resolve().is_relative_to(config.data.resolve()):
        raise UsageError(
            f"the output {folder} lies in the image folder {config.data}; give another"
        )
    _check_settings(base, config.training)
    check_runtime(config.training, base.device)
    check_recipe(folder, config.recipe(base), force=force)


def _check_settings(base: Base, training: TrainingConfig) -> None:
    """Settings that this base has no use for are refused, not ignored."""
    used = {
        "prompt": base.conditioner is not None,
        "embedded_guidance": base.family.guidance == "embedded",
    }
    for name, of_use in used.items():
        if getattr(training, name) is not None and not of_use:
            raise UsageError(f'{name} is of no use to base "{base.name}"; leave it out')
    even = base.objective != "flow" and training.timestep_sampling != "logit-normal"
    if training.timestep_shift is not None and even:
        raise UsageError(
            f'timestep_shift is of no use where every step of base "{base.name}" is drawn alike; '
            'leave it out, or give timestep_sampling "logit-normal" too'
        )


def read_latents(
    base: Base, config: RunConfig, *, cache_dir: Path | None = None, progress: bool = False
) -> LatentSet:
    """The latents of the images, encoded where the cache lacks them."""
    images = open_images(config.data, layout=config.layout, split=config.split, decode=False)
    check_bad_share(images, config.max_bad_share)
    with counting_bar("encoding", progress=progress) as report:
        return LatentCache.build(
            images,
            base.codec,
            image_size=config.image_size,
            mode=config.resize,
            flip=config.flip,
            cache_dir=cache_dir,
            progress=report,
            bad_limit=config.max_bad_share,
        )


def fresh_delta(base: Base, config: RunConfig, latents: LatentSet) -> Delta:
    """A fresh delta of the method for the classes of the images, its provenance filled in.

    Where the base reads prompts, classes are no part of the delta, but its provenance has their
    names and the template of their prompts. It names no time and no path, so that equal runs write
    equal files.
    """
    if latents.folder is None:
        raise SmidgenError("these latents come from no folder: nothing says what their classes are")
    classes = latents.folder.classes
    settings = {
        name: value
        for name, value in dataclasses.asdict(config.training).items()
        if name not in ("trackers", "num_threads") and not (name in BY_BASE and value is None)
    }
    if config.training.lr is None:
        settings["lr"] = resolve(config.method).default_lr
    training = {
        "settings": settings,
        "data": {
            "name": config.data.resolve().name,
            "layout": config.layout,
            "split": config.split,
            "images": len(latents),
            "skipped": latents.folder.num_bad,
            "enlarged": latents.num_enlarged,
            "image_size": config.image_size,
            "resize": config.resize,
            "flip": config.flip,
        },
        "versions": {name: _version(name) for name in ("smidgen", "torch")},
    }
    if base.conditioner is not None:
        template = config.training.prompt or DEFAULT_PROMPT
        training[PROMPTS] = {"template": template, "classes": list(classes)}
    return build_delta(
        config.method,
        base,
        config.method_config,
        classes if base.conditioner is None else (),
        generator_for(config.training.seed, "delta"),
        training=training,
    )


def _report(
    base: Base, config: RunConfig, latents: LatentSet, result: TrainingResult, begun: float
) -> dict[str, Any]:
    """run.json: what is left out of the delta because it differs from run to run."""
    trained, total = (
        result.delta.num_parameters(),
        sum(p.numel() for p in base.denoiser.parameters()),
    )
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(result.seconds, 2),
        "seconds_now": round(time.time() - begun, 2),
        "resumed_at_step": result.first_step,
        "images_per_second": round(result.images_per_second, 2),
        "steps": result.steps,
        "best_step": result.best_step,
        "images": len(latents),
        "classes": len(latents.folder.classes if latents.folder is not None else ()),
        "trainable": trained,
        "total": total,
        "device": str(base.device),
        "num_threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from the source tree
        return None
