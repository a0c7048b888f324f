"""One run: from a folder of images and settings to RUN/delta.safetensors.

scan -> latent cache -> method -> train_delta, and around it the rule of recipe.py.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from smidgen.core.delta import Delta
from smidgen.data.latents import LatentSet
from smidgen.errors import SmidgenError
from smidgen.evaluation.protocol import version_of
from smidgen.files.lock import held
from smidgen.files.run_files import DELTA, REPORT
from smidgen.files.standing import Standing
from smidgen.files.writing import write_json
from smidgen.methods.build import build_delta
from smidgen.models.base import Base
from smidgen.models.positions import check_positions
from smidgen.models.prompts import DEFAULT_PROMPT, DREAMBOOTH, PROMPTS
from smidgen.models.reader import Encoder, Reader
from smidgen.processes import barrier, from_main, is_main
from smidgen.training.captions import provenance_of, task_of
from smidgen.training.config import CLIP_REWARD, RunConfig, TrainingConfig
from smidgen.training.described import check_run, recipe_of, settled
from smidgen.training.images import read_latents
from smidgen.training.loop import TrainingResult, check_training, train_delta
from smidgen.training.mixed import Place
from smidgen.training.previews import evaluators_of
from smidgen.training.randomness import generator_for
from smidgen.training.recipe import begin_run, steps_done
from smidgen.training.reward_targets import rewarded
from smidgen.training.saving import identity_of
from smidgen.training.start import INIT, begun_with, identity_of_start
from smidgen.training.state import AGAIN, check_identity, checkpoints, read_position
from smidgen.training.subject import provenance_of_subject

logger = logging.getLogger(__name__)

# settings of some bases, tasks or runs: a delta names them where they have a value
BY_BASE = (
    *("prompt", "prior_weight", "timestep_sampling", "timestep_shift", "embedded_guidance"),
    *("train_text_encoder", "patience"),
)

OF_REWARD = ("objective", "reward")  # a delta names them where that is its objective

# settings that change no trained bit: a delta does not name them
OF_NO_BIT = ("trackers", "num_threads", "metrics_features")


def read_delta(path: Path, base: Base) -> Delta:
    """The delta in a file. Raises: SmidgenError if it is none, or of another base."""
    delta = Delta.load(path)
    delta.check_base(base.fingerprint, base.name)
    return delta


def fine_tune(
    base: Base,
    config: RunConfig,
    *,
    read_init: Callable[[RunConfig, Base], Delta],
    force: bool = False,
    progress: bool = False,
    place: Place | None = None,
) -> Delta:
    """Train a delta of `base` on a folder of images and return its average.

    A run that is finished already only returns it. With `force` an earlier run in the output is
    removed, once everything that can be checked has been. `read_init` reads the delta that
    `config.init` names; `place` is where the network is shared with other trainings.

    Raises: UsageError, SmidgenError as everything that this calls; Interrupted.
    """
    config = config.resolved()
    folder = config.output
    with ExitStack() as stack:
        from_main(lambda: stack.enter_context(held(folder)))
        asked = config
        config = from_main(lambda: settled(base, asked, force=force))
        standing: Standing = from_main(lambda: check_run(base, config, force=force))
        latents = read_latents(base, config, progress=progress and is_main())
        if standing != "new":
            from_main(lambda: _check_same(base, config, latents))
        if standing == "finished":
            logger.info("%s is finished: %d steps", folder, steps_done(folder))
            return read_delta(folder / DELTA, base)
        if asked.training.precision != config.training.precision:
            logger.info('precision "auto" is %s in this run', config.training.precision)
        reader = None
        if config.encodes_in_step and base.conditioner is not None:
            reader = stack.enter_context(base.conditioner.open())
        delta = fresh_delta(base, config, latents, reader)
        if config.init is not None:
            # whatever became of it since: a run that goes on has the edits of its own last delta
            goes_on = (
                standing == "begun" and bool(checkpoints(folder)) and (folder / DELTA).is_file()
            )
            init = read_delta(folder / DELTA, base) if goes_on else read_init(config, base)
            check_positions(init, base)
            other_base = config.init_other_base
            delta = begun_with(delta, init, goes_on=goes_on, other_base=other_base)
        task = task_of(base, delta, latents, config, reader=reader, progress=progress)
        if config.training.objective == CLIP_REWARD:
            task = rewarded(base, delta, config.training.reward, task, latents)
        check_training(base, delta, latents, config.training)
        from_main(lambda: _begin(base, config, latents, force=force))
        begun = time.time()
        result = train_delta(
            base,
            delta,
            latents,
            config.training,
            folder,
            progress=progress,
            evaluators=evaluators_of(base, config, task),
            task=task,
            place=place,
        )
        if is_main():
            encoders = () if reader is None or not config.trains_encoders else reader.encoders
            report = _report(base, encoders, latents, config.training, result, begun)
            write_json(report, folder / REPORT, AGAIN)
        barrier()
    return result.delta.to(base.device)


def _check_same(base: Base, config: RunConfig, latents: LatentSet) -> None:
    """Raises: UsageError if the run in the output is of another base, images or start."""
    if found := checkpoints(config.output):
        start = identity_of_start(config.init, config.output / DELTA)
        identity = identity_of(base, latents, start)
        check_identity(config.output, read_position(found[-1]), identity)


def _begin(base: Base, config: RunConfig, latents: LatentSet, *, force: bool) -> None:
    begin_run(config.output, recipe_of(base, config), force=force)
    if latents.folder is not None:
        others = None if latents.class_images is None else latents.class_images.folder
        skipped = latents.folder.skipped() + ([] if others is None else others.skipped())
        write_json(skipped, config.output / "bad_files.json", AGAIN)
        logger.info("%s", latents.report())


def fresh_delta(
    base: Base, config: RunConfig, latents: LatentSet, reader: Reader | None = None
) -> Delta:
    """A fresh delta of the method for the classes of the images, its provenance filled in.

    Where the base reads prompts, classes are no part of the delta, but its provenance has their
    names and the template of their prompts, or examples of the captions. It names no time and no
    path, so that equal runs write equal files. `reader` has the text encoders, where something in
    them is trained.
    """
    if latents.folder is None and latents.captions is None:
        raise SmidgenError("these latents come from no folder: nothing says what their classes are")
    classes = () if latents.folder is None else latents.folder.classes
    unnamed = OF_NO_BIT if config.training.objective == CLIP_REWARD else (*OF_NO_BIT, *OF_REWARD)
    settings = {
        name: value
        for name, value in dataclasses.asdict(config.training).items()
        if name not in unnamed and not (name in BY_BASE and value in (None, False))
    }
    if "reward" in settings:  # of which CLIP, its identity says, and nothing where it lies
        del settings["reward"]["weights"]
    training = {
        "settings": settings,
        "data": {
            "name": config.data.resolve().name,
            "layout": config.layout,
            "split": config.split,
            "images": latents.num_own,
            "skipped": 0 if latents.folder is None else latents.folder.num_bad,
            "enlarged": latents.num_enlarged,
            "image_size": base.image_size.plain,
            "resize": config.resize,
            "flip": config.flip,
            **({} if base.positions is None else {"positions": base.positions}),
            **_buckets_of(latents),
        },
        "versions": {name: version_of(name) for name in ("smidgen", "torch")},
    }
    training |= provenance_of(latents)
    if config.task == DREAMBOOTH:
        training[DREAMBOOTH] = provenance_of_subject(config, len(latents) - latents.num_own)
    if config.init is not None:
        training[INIT] = identity_of_start(config.init, config.output / DELTA)
    if base.conditioner is not None and latents.captions is None:
        template = config.training.prompt or DEFAULT_PROMPT
        training[PROMPTS] = {"template": template, "classes": list(classes)}
    return build_delta(
        config.method,
        base,
        config.method_config,
        classes if base.conditioner is None else (),
        generator_for(config.training.seed, "delta"),
        training=training,
        encoders=reader.encoders if reader is not None and config.trains_encoders else (),
        token=config.token,
        train_labels=config.training.train_labels,
    )


def _buckets_of(latents: LatentSet) -> dict[str, Any]:
    """What a delta says of several buckets: how many images were in each."""
    found = None if latents.findings is None else latents.findings.buckets
    return {"buckets": found} if found is not None and len(found) > 1 else {}


def _report(
    base: Base,
    encoders: Sequence[Encoder],
    latents: LatentSet,
    config: TrainingConfig,
    result: TrainingResult,
    begun: float,
) -> dict[str, Any]:
    """run.json: what is left out of the delta because it differs from run to run. `encoders` are
    those in which something was trained.
    """
    trained, networks = (
        result.delta.num_parameters(),
        (base.denoiser, *(one.network for one in encoders)),
    )
    total = sum(p.numel() for network in networks for p in network.parameters())
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(result.seconds, 2),
        "seconds_now": round(time.time() - begun, 2),
        "resumed_at_step": result.first_step,
        "images_per_second": round(result.images_per_second, 2),
        "steps": result.steps,
        "best_step": result.best_step,
        "images": latents.num_own,
        "classes": len(latents.folder.classes if latents.folder is not None else ()),
        "trainable": trained,
        "total": total,
        "device": str(base.device),
        "precision": config.precision,
        **({} if result.frozen_error is None else {"frozen_error": result.frozen_error}),
        "num_threads": torch.get_num_threads(),
    }
