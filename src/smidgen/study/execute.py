"""One run of a study: train, draw, measure, and RUN/result.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from smidgen.api.training import run as train
from smidgen.core.delta import Delta
from smidgen.data.embedded_sets import NAMES, unpack
from smidgen.errors import SmidgenError
from smidgen.evaluation.captions import captions_of
from smidgen.evaluation.contexts import prompts_of, subject_of, world_of
from smidgen.evaluation.machine import machine
from smidgen.evaluation.personalisation import NEARNESS, share_of_way
from smidgen.files.lock import Held
from smidgen.files.places import default_cache_dir
from smidgen.files.reading import Unreadable, read_json
from smidgen.files.run_files import DELTA, REPORT, RESULT
from smidgen.files.writing import write_json, write_png
from smidgen.models.base import Base
from smidgen.models.labels import class_names
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from smidgen.study.design import VALIDATION_LOSS
from smidgen.study.measuring import BEFORE, OF_DATA, evaluations, loaded, step_kept
from smidgen.study.request import Request, sets_place
from smidgen.study.runs import FAILURE, Run
from smidgen.training.config import RunConfig
from smidgen.training.interrupt import Interrupted
from smidgen.training.journal import read_log

SAMPLES, SHOWN = "samples.png", 8


def perform(run: Run, *, force: bool = False) -> None:
    """Leaves result.json, or failure.json if the training or the measuring could not be done; what
    was trained already is not trained again, unless `force` starts over.

    Raises: Interrupted; Held, of a training that another process has; SmidgenError if not even the
        failure can be written.
    """
    request = run.request
    assert request is not None, "a run waits until its arm is tuned"
    facts = {"cell": dict(run.cell), "seed": run.seed, "settings": request.facts}
    facts |= {"machine": machine(), "date": date.today().isoformat()}
    try:
        found = measured(run, request, force=force)
    except (Interrupted, Held):
        raise
    except SmidgenError as error:
        told = str(error)  # is committed: what lies where on this machine is nobody's business
        for place in (Path.cwd(), default_cache_dir()):
            told = told.replace(f"{place.resolve()}/", "")
        write_json(facts | {"error": told}, run.folder / FAILURE)
        return
    write_json(facts | found, run.folder / RESULT)
    (run.folder / FAILURE).unlink(missing_ok=True)


def measured(run: Run, request: Request, *, force: bool) -> dict[str, Any]:
    """What result.json says of the run besides what was asked. Raises: SmidgenError."""
    request = begun(request, force=force)
    delta = trained(request, force=force)
    training = trained_facts(run.trained, delta)
    if request.first is not None:
        training["first_seconds"] = sum(map(seconds_of, request.trainings[:-1]))
    # a run of the tuning that is judged by its validation loss needs no samples
    table = run.design.table
    if run.tried is not None and table.tune is not None and table.tune.metric == VALIDATION_LOSS:
        return {"training": training}
    if request.reference is not None and request.reference.is_relative_to(sets_place()):
        provide(request.shown)
    found = evaluations(request, table, run.folder)
    metrics, baselines = (numbers_of(found.after, name) for name in ("metrics", "baselines"))
    for beside, document in ((BEFORE, found.before), (OF_DATA, found.of_data)):
        if document is not None:
            numbers = numbers_of(document, "metrics")
            baselines |= {f"{name}_{beside}": value for name, value in numbers.items()}
    write_samples(run.folder, loaded(request.base, request.sampling.precision), request, delta)
    return {
        "training": training | {"evaluation_seconds": found.seconds},
        "metrics": metrics | way_of(metrics, baselines),
        "baselines": baselines,
        "protocol": found.after["protocol"] | places_of(run, request),
        "warnings": found.after["warnings"],
        "curve": {step: numbers_of(one, "metrics") for step, one in found.curve.items()},
    }


def begun(request: Request, *, force: bool = False) -> Request:
    """With the delta of its first training to begin from, which is trained unless it is there.
    Raises: as the training.
    """
    if request.first is None:
        return request
    first = begun(request.first, force=force)
    trained(first, force=force)
    config = replace(request.config, init=first.config.output / DELTA)
    return replace(request, config=config)


def trained(request: Request, *, force: bool = False) -> Delta:
    """Its delta. Raises: as the training."""
    provide(request.data)
    return train(loaded(request.base), request.config, force=force)


def seconds_of(config: RunConfig) -> float:
    """What a training that is finished took, by its run.json. Raises: SmidgenError."""
    try:
        return read_json(config.output / REPORT, dict[str, Any])["seconds"]
    except (Unreadable, KeyError) as error:
        raise SmidgenError(f"{config.output / REPORT} does not say how long it took") from error


def places_of(run: Run, request: Request) -> dict[str, str]:
    """What an evaluation read, by names that are the same on every machine."""
    reference = request.data if request.reference is None else request.shown
    images = run.trained.relative_to(run.design.output).as_posix()
    return {"images": images, "reference": reference}


def provide(data: str) -> None:
    """Writes a shipped set to the cache folder, unless it lies there."""
    name = data.partition("/")[0]
    if not Path(data).exists() and name in NAMES:
        unpack(name, sets_place() / name)


def numbers_of(document: Mapping[str, Any], name: str) -> dict[str, float | None]:
    """The metrics or baselines of an evaluation; of further features as `features.metric`."""
    first = document["protocol"]["features"]
    found = {key: _mean(value) for key, value in document.get(name, {}).items()}
    for features, block in document.get("by_features", {}).items():
        if features != first:
            found |= {f"{features}.{k}": _mean(v) for k, v in block.get(name, {}).items()}
    return found


def way_of(
    metrics: Mapping[str, float | None], baselines: Mapping[str, float | None]
) -> dict[str, float]:
    """How far each nearness to a subject is on its way from the base's to that of real pictures."""
    ends = ("of_base", "of_reference")
    found = {
        f"{name}_way": share_of_way(
            metrics.get(name), *(baselines.get(f"{name}_{end}") for end in ends)
        )
        for name in NEARNESS
    }
    return {name: value for name, value in found.items() if value is not None}


def _mean(value: Any) -> float | None:
    return value["mean"] if isinstance(value, Mapping) else value


def trained_facts(folder: Path, delta: Delta) -> dict[str, Any]:
    """What the training cost, by its run.json and its log."""
    try:
        report = read_json(folder / REPORT, dict[str, Any])
        lines = [record for _, record in read_log(folder / "log.jsonl")]
    except Unreadable:
        report, lines = {}, []
    losses = {r["step"]: r[VALIDATION_LOSS] for r in lines if VALIDATION_LOSS in r}
    last = losses[max(losses)] if losses else None
    kept = ("seconds", "images_per_second", "steps", "best_step", "trainable", "total")
    return {name: report.get(name) for name in kept} | {
        # of the delta that is measured, which with keep = "best" is not the last one
        VALIDATION_LOSS: losses.get(step_kept(delta), last),
        "trainable": delta.num_parameters(),
        "delta_bytes": (folder / DELTA).stat().st_size,
        "num_threads": torch.get_num_threads(),
    }


def write_samples(folder: Path, base: Base, request: Request, delta: Delta) -> None:
    """The first samples side by side: those of one seed show the same noise in every arm. Of a
    subject they are of its first prompts, of captions of the first that are measured.
    """
    sampling: SamplingConfig = replace(request.sampling, num_images=SHOWN)
    if request.config.task == DREAMBOOTH:
        subject = subject_of(delta.provenance.training[DREAMBOOTH])
        drawn = prompts_of(subject, world_of(base)).drawn
        sampling = replace(sampling, prompt=drawn[:SHOWN])
    elif not class_names(base, delta):
        assert request.reference is not None, "a personalisation alone has none"
        captions = captions_of(request.reference, request.evaluation, SHOWN)
        sampling = replace(sampling, prompt=captions)
    batches = prepare(base, sampling, delta=delta).batches()
    images = np.concatenate([images for _, images in batches])
    write_png(Image.fromarray(np.concatenate(list(images), axis=1)), folder / SAMPLES)
