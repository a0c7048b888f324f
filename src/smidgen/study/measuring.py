"""What is measured of a run that is trained: its delta, the one that it began with, those that it
kept on the way, and images of its data; `smidgen demo` measures by this too. Bases stay loaded
between runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.api import evaluation
from smidgen.api.training import start_of
from smidgen.core.delta import Delta
from smidgen.data.images import decode, fit
from smidgen.data.layouts import open_images
from smidgen.evaluation.run import measure_batches
from smidgen.evaluation.stream import ArrayBatch
from smidgen.files.reading import sha256_of
from smidgen.files.run_files import DELTA
from smidgen.models.base import Base
from smidgen.models.calling import DTYPES
from smidgen.models.chosen import TrainedBase
from smidgen.progress import counting_bar
from smidgen.sampling.draw import prepare
from smidgen.sampling.folder import fill_folder, standing_of
from smidgen.study.design import StudyTable
from smidgen.study.request import Request
from smidgen.training.state import step_of

BEFORE, AFTER, OF_DATA = "before", "after", "of_data"
START = "start.safetensors"

Document = Mapping[str, Any]  # of an evaluation
Part = Callable[[str, str], AbstractContextManager[None]]  # of the work: its name, what it does


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """Of a run's delta, of the one that it began with, of images of its data, and of the deltas on
    the way by step, these two among them. `seconds` went into drawing and measuring the first.
    """

    after: Document
    seconds: float
    before: Document | None = None
    of_data: Document | None = None
    curve: Mapping[int, Document] = field(default_factory=dict)


def untold(name: str, text: str) -> AbstractContextManager[None]:
    """A part of the work of which nobody is told."""
    return nullcontext()


def loaded(options: TrainedBase, precision: str = "fp32") -> Base:
    """A base, once a process."""
    return _loaded(options, precision)


@lru_cache(maxsize=2)
def _loaded(options: TrainedBase, precision: str) -> Base:
    return options.load(dtype=DTYPES[precision])


def evaluations(
    request: Request, table: StudyTable, folder: Path, *, part: Part = untold, told: bool = False
) -> Evaluations:
    """All that the table asks for, of a run that is trained. What is kept beside the numbers lies
    in `folder`; samples that lie there already are not drawn again. `told`: with bars of progress.

    Raises: UsageError, SmidgenError as evaluations.
    """
    base = loaded(request.base, request.sampling.precision)
    trained = request.config.output

    def evaluated(side: str, source: Path) -> Document:
        if table.keep_samples:
            count = request.num_images
            with part(f"sample_{side}", f"drawing {count} samples {side}"):
                source = _kept_samples(source, base, request, folder / side, told=told)
        with part("evaluate", f"measuring those {side}"):
            return measure(source, base, request, told=told)

    before = evaluated(BEFORE, _written_start(base, request)) if table.before else None
    begun = time.perf_counter()
    after = evaluated(AFTER, trained)
    seconds = round(time.perf_counter() - begun, 1)
    of_data = measure_data(base, request) if table.of_data else None
    steps: dict[int, Document] = {}
    if table.curve:
        delta = Delta.load(trained / DELTA)
        end = step_kept(delta) or request.config.training.steps
        with part("curve", "measuring the deltas kept on the way"):
            between = dict(_on_the_way(base, request, table, end))
        steps = ({} if before is None else {0: before}) | between | {end: after}
    return Evaluations(after=after, before=before, of_data=of_data, curve=steps, seconds=seconds)


def measure(source: Path, base: Base, request: Request, *, told: bool = False) -> dict[str, Any]:
    """The evaluation of a run, a delta or a folder of images as `smidgen evaluate` does it."""
    config = replace(request.evaluation, device=str(base.device))
    drawn = evaluation.Drawn(base=base)
    reference = request.reference or request.config.data
    with counting_bar("measuring", progress=told) as report:
        return evaluation.measure(source, reference, config, drawn, request.sampling, report)


def measure_data(base: Base, request: Request) -> dict[str, Any]:
    """The same of images that were trained on, as the training sees them: as many as are drawn, one
    of each class in turn, or all where there are fewer.
    """
    config, reference = request.config, request.reference
    assert reference is not None, "the data of a subject is its reference"
    found = open_images(config.data, layout=config.layout, split=config.split)
    chosen = [found.files[place] for place in _in_turn(found.class_numbers)]
    chosen = chosen[: request.num_images]
    size = request.sampling.batch_size

    def batches() -> Iterator[ArrayBatch]:
        for first in range(0, len(chosen), size):
            files = chosen[first : first + size]
            pictures = [decode(one.read(), one.path, found.min_size)[0] for one in files]
            images = np.stack([fit(one, base.image_size, config.resize) for one in pictures])
            yield (
                first,
                images.transpose(0, 2, 3, 1),
                [found.classes[one.class_number] for one in files],
            )

    measured = replace(request.evaluation, device=str(base.device))
    return measure_batches(
        batches(), reference, measured, sampling={}, name=request.data, classes=found.classes
    )


def _in_turn(classes: Sequence[int]) -> list[int]:
    """All places, an arbitrary one of each class, then another of each that has more."""
    turns: dict[int, list[int]] = {}
    for place in np.random.default_rng(0).permutation(len(classes)).tolist():
        turns.setdefault(classes[place], []).append(place)
    rounds = zip_longest(*(turns[name] for name in sorted(turns)))
    return [place for one in rounds for place in one if place is not None]


def _kept_samples(source: Path, base: Base, request: Request, folder: Path, *, told: bool) -> Path:
    """The folder with the samples of a run or a delta, drawn unless they lie there."""
    path = evaluation.delta_of(source)
    sampling = replace(request.sampling, num_images=request.num_images)
    drawing = prepare(base, sampling, delta=Delta.load(path))
    settings = drawing.facts() | {"delta_sha256": sha256_of(path)}
    if standing_of(folder, settings, force=True) != "finished":
        with counting_bar("drawing", progress=told) as report:
            fill_folder(drawing, folder, settings, report)
    return folder


def _written_start(base: Base, request: Request) -> Path:
    """The file of the delta that the run began with."""
    trained = request.config.output
    path = trained / START
    start_of(base, request.config, Delta.load(trained / DELTA)).save(path)
    return path


def _on_the_way(
    base: Base, request: Request, table: StudyTable, measured: int
) -> Iterator[tuple[int, Document]]:
    """Step and evaluation of each delta that the training kept, but of the one that is measured."""
    if table.curve_images is not None:
        request = replace(
            request,
            sampling=replace(request.sampling, num_images=table.curve_images),
            evaluation=replace(request.evaluation, metrics=table.metric),
        )
    folder = request.config.output / "deltas"
    kept = {step_of(path): path for path in folder.glob("step-*.safetensors")}
    for step, path in sorted(kept.items()):
        if step != measured:
            yield step, measure(path, base, request)


def step_kept(delta: Delta) -> int | None:
    """The step that a run's delta is of."""
    return delta.provenance.training.get("step")
