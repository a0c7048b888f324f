"""The runs of a study: which there are, what each is made of, and how it stands.

A run is a cell of the design with one seed, in a folder of its own; it is finished when its
result.json is there and was made with these settings. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from smidgen.data.embedded_sets import EMBEDDED, SETS, SUBJECTS, locate_reference
from smidgen.errors import UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.schemas import MOST_RESULT_BYTES
from smidgen.files.names import file_part
from smidgen.files.places import default_cache_dir
from smidgen.files.reading import Unreadable, read_json
from smidgen.files.settings import check_values, fill, flatten, make, settings_of
from smidgen.files.standing import changed
from smidgen.methods import resolve
from smidgen.models.chosen import TrainedBase
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sampling.config import MeasuredSampling
from smidgen.study.design import (
    DRAWN,
    VALIDATION_LOSS,
    Cell,
    Design,
    Scalar,
    Settings,
    label_of,
)
from smidgen.training.config import RunConfig, TrainingConfig

RESULT, FAILURE = "result.json", "failure.json"
REFERENCE = "reference"  # the one setting of a level that is the evaluation's
RUNS, TUNING, TRAINED = "runs", "tuning", "trained"

State = Literal["finished", "failed", "other settings", "begun", "waiting", "missing"]

# settings that change no number, or that say where something lies on this machine
NOT_COMPARED = (
    *("output", "data", "cache_dir", "device", "batch_size_of_evaluation", "num_threads"),
    *("checkpoint_every", "keep_checkpoints", "trackers", "sample_every", "max_bad_share"),
    "offload",
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that a run does, as the objects of the other verbs; `data` is its name in the recipe and
    `reference` None that of a personalisation, the pictures themselves.
    """

    base: TrainedBase
    config: RunConfig
    sampling: MeasuredSampling
    evaluation: EvaluationConfig
    data: str
    reference: Path | None

    @property
    def facts(self) -> dict[str, Any]:
        """Everything that the result depends on, as JSON, by names that say whose it is."""
        values = flatten(self.base, self.config, self.config.training, self.config.method_config)
        values = {name: one for name, one in values.items() if name not in NOT_COMPARED}
        sampling = {f"sampling.{name}": one for name, one in self.sampling.facts().items()}
        measured = {
            f"evaluation.{name}": one
            for name, one in flatten(self.evaluation).items()
            if name not in (*NOT_COMPARED, "batch_size")
        }
        given = {"data": self.data, REFERENCE: None if self.reference is None else self.shown}
        return json.loads(json.dumps(given | values | sampling | measured, default=str))

    @property
    def shown(self) -> str:
        """What the reference is called: the same on every machine for a shipped one."""
        assert self.reference is not None, "a personalisation has no reference of its own"
        inside = self.reference.is_relative_to(str(EMBEDDED))
        return self.reference.parent.name if inside else str(self.reference)


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the study reads of a result.json or failure.json."""

    settings: dict[str, Any]
    cell: dict[str, str]
    seed: int
    metrics: dict[str, float | None] = {}
    baselines: dict[str, float | None] = {}
    training: dict[str, float | None] = {}
    curve: dict[int, dict[str, float | None]] = {}
    error: str | None = None
    machine: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A cell with a seed. `tried`: the value that a run of the tuning tries."""

    design: Design
    cell: Cell
    seed: int
    tried: Scalar | None = None

    @property
    def name(self) -> str:
        """Of its folder, the same on every machine."""
        shown = [file_part(label, 60) for label in self.cell.values()]
        tried = [] if self.tried is None else [file_part(label_of(self.tried), 60)]
        return "-".join([*shown, *tried, str(self.seed)])

    @property
    def place(self) -> str:
        """Where its files lie in the study's folder."""
        return f"{RUNS if self.tried is None else TUNING}/{self.name}"

    @property
    def folder(self) -> Path:
        """Where its files lie."""
        return self.design.output / self.place

    @property
    def trained(self) -> Path:
        """Where its training lies: its own folder, or one of all that differ in how is drawn."""
        if self.tried is not None or not self.design.drawn:
            return self.folder
        labels = [one for name, one in self.cell.items() if name not in self.design.drawn]
        parts = [*(file_part(label, 60) for label in labels), str(self.seed)]
        return self.design.output / TRAINED / "-".join(parts)

    @property
    def settings(self) -> dict[str, Any] | None:
        """The recipe's values for it; None while the tuning has not found one of them."""
        values = self.design.settings(self.cell)
        tune = self.design.table.tune
        if tune is None or not self.design.is_tuned(self.cell):
            return values
        value = self.tried if self.tried is not None else best_value(self.design, self.cell)
        return None if value is None else values | {tune.setting: value}

    @cached_property
    def request(self) -> Request | None:
        """Its settings as objects, resolved; None while the tuning has not found one of them.

        Raises: UsageError for settings that make no sense, in the words of `train`.
        """
        values = self.settings
        return None if values is None else request_of(self, values)

    def kept(self, name: str) -> Kept | None:
        """Its result.json or failure.json, None if there is none that can be read."""
        try:
            return read_json(self.folder / name, Kept, MOST_RESULT_BYTES)
        except Unreadable:
            return None

    @property
    def result(self) -> Kept | None:
        """Its result, if it was made with these settings."""
        found, request = self.kept(RESULT), self.request
        if found is None or request is None or differences(found, request):
            return None
        return found

    @property
    def standing(self) -> tuple[State, str]:
        """How it stands, and why where that is not plain."""
        if self.request is None:
            return "waiting", "for the tuning of its arm"
        ends: tuple[tuple[str, State], ...] = ((RESULT, "finished"), (FAILURE, "failed"))
        for name, state in ends:
            if (found := self.kept(name)) is None:
                continue
            if changes := differences(found, self.request):
                return "other settings", ", ".join(changes)
            return state, found.error or ""
        begun = self.folder.exists() or self.trained.exists()
        return ("begun" if begun else "missing"), ""


def differences(found: Kept, request: Request) -> list[str]:
    """`name a -> b` of each setting in which a result is not that of the request. A setting that
    was not known when the result was made had its default.
    """
    defaults = defaults_of(request)
    return changed(defaults | found.settings, request.facts)


def defaults_of(request: Request) -> dict[str, Any]:
    """The facts of a request with only what must be given, as far as they have defaults."""
    found = settings_of(TrainedBase, RunConfig, TrainingConfig, type(request.config.method_config))
    found |= settings_of(EvaluationConfig, prefix="evaluation.")
    found |= settings_of(MeasuredSampling, prefix="sampling.")
    known = request.facts
    return json.loads(
        json.dumps({n: one.default for n, one in found.items() if n in known}, default=str)
    )


def request_of(run: Run, values: Mapping[str, Any]) -> Request:
    """The objects that these values of the recipe mean. Raises: UsageError."""
    design = run.design
    where = f"{design.source}: {run.name}"
    values = dict(values)
    reference, data = values.pop(REFERENCE, None), values.get("data")
    if not isinstance(data, str):
        raise UsageError(f"{where}: nothing says what to train on; give data")
    values |= {"data": str(place_of(data)), "output": str(run.trained), "seed": run.seed}
    drawn = {key.removeprefix(DRAWN): values.pop(key) for key in [*values] if key.startswith(DRAWN)}
    method = resolve(str(values.get("method", "difffit")))
    groups = (TrainedBase, RunConfig, TrainingConfig, method.config)
    try:
        checked = check_values(values, *groups, source="")
        config = replace(
            fill(RunConfig, checked),
            method_config=fill(method.config, checked),
            training=fill(TrainingConfig, checked),
        ).resolved()
        sampling = make(MeasuredSampling, {"seed": run.seed, **design.table.sampling, **drawn})
        evaluation = make(EvaluationConfig, _as_data(design, config, reference))
        base = fill(TrainedBase, checked)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    for name in ("keep_samples", "of_data"):
        if getattr(design.table, name) and config.task == DREAMBOOTH:
            raise UsageError(f"{where}: {name} is for images of classes; leave it out")
    if design.table.before and (config.task == DREAMBOOTH or config.encodes_in_step):
        raise UsageError(
            f"{where}: before is of no use to a subject, which has the numbers of the base beside "
            "its own, nor where text encoders are trained; leave it out"
        )
    if reference is None and config.task != DREAMBOOTH:
        reference = data if data in SETS else None
        if reference is None:
            raise UsageError(
                f"{where}: nothing says what samples are compared with; give reference"
            )
    return Request(
        base=base,
        config=config,
        sampling=sampling,
        evaluation=evaluation,
        data=data,
        reference=None if reference is None else locate_reference(str(reference)),
    )


def _as_data(design: Design, config: RunConfig, reference: Any) -> Settings:
    """The settings of the evaluation; a reference that is the data's own folder is read as that is,
    in its layout and split.
    """
    own = reference is not None and Path(str(reference)) == config.data
    read = {"layout": config.layout, "split": config.split} if own else {}
    return {name: one for name, one in read.items() if one is not None} | design.table.evaluation


def place_of(data: str) -> Path:
    """The folder of images that a recipe means: a path, or a shipped set in the cache folder, of
    the subjects one (`subjects/owl-ink`).
    """
    name, _, subject = data.partition("/")
    if Path(data).exists() or name not in (*SETS, SUBJECTS):
        return Path(data)
    folder = default_cache_dir() / "sets" / name
    return folder / (subject if name == SUBJECTS else "train")


def runs_of(design: Design) -> list[Run]:
    """The runs that the study compares, the seeds in turn: a first of everything comes first."""
    return [
        Run(design=design, cell=cell, seed=seed)
        for seed in design.table.seeds
        for cell in design.cells()
    ]


def tuning_of(design: Design, cell: Cell | None = None) -> list[Run]:
    """The runs that try values: of every arm, or of that of one cell."""
    tune = design.table.tune
    if tune is None:
        return []
    seed = design.table.seeds[0] if tune.seed is None else tune.seed
    cells = filter(design.is_tuned, design.cells() if cell is None else [cell])
    places = {tuple(at.items()): at for at in map(design.tuned_at, cells)}
    return [
        Run(design=design, cell=at, seed=seed, tried=value)
        for at in places.values()
        for value in tune.values
    ]


def best_value(design: Design, cell: Cell) -> Scalar | None:
    """The value with which the arm of a cell did best, of those that did not fail; None while one
    of them is to be tried. Of equal ones the first.

    Raises: UsageError if all failed, or none has the metric.
    """
    tune = design.table.tune
    assert tune is not None, "nothing is tuned"
    scores: list[tuple[float, Scalar]] = []
    for run in tuning_of(design, cell):
        state, _ = run.standing
        if state not in ("finished", "failed"):
            return None
        found = None if run.result is None else score_of(run.result, tune.metric)
        if found is not None and run.tried is not None:
            scores.append((-found if tune.highest else found, run.tried))
    if not scores:
        raise UsageError(
            f"{design.source}: no value of {tune.setting} that was tried for "
            f"{' '.join(design.arm_of(cell).values())} has a {tune.metric}"
        )
    return min(scores, key=lambda one: one[0])[1]


def score_of(result: Kept, metric: str) -> float | None:
    """A number of a result by its name, of the evaluation or of the training."""
    where = result.training if metric == VALIDATION_LOSS else result.metrics
    return where.get(metric)


def states(runs: list[Run]) -> Iterator[tuple[Run, State, str]]:
    """Each run with how it stands; one whose settings cannot be, in the library's words."""
    for run in runs:
        try:
            state, why = run.standing
        except UsageError as error:
            state, why = "failed", str(error)
        yield run, state, why
