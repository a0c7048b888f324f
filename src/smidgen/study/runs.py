"""The runs of a study: which there are, what each is made of, and how it stands.

A run is a cell of the design with one seed, in a folder of its own; it is finished when its
result.json is there and was made with these settings. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec

from smidgen.errors import UsageError
from smidgen.evaluation.schemas import MOST_RESULT_BYTES
from smidgen.files.names import file_part
from smidgen.files.reading import Unreadable, read_json
from smidgen.files.run_files import RESULT
from smidgen.files.standing import changed
from smidgen.study.design import (
    VALIDATION_LOSS,
    Cell,
    Design,
    Scalar,
    label_of,
)
from smidgen.study.request import Request, defaults_of, request_of

FAILURE = "failure.json"
RUNS, TUNING, TRAINED = "runs", "tuning", "trained"

State = Literal["finished", "failed", "other settings", "begun", "waiting", "missing"]


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
        if values is None:
            return None
        where = f"{self.design.source}: {self.name}"
        return request_of(self.design, values, seed=self.seed, output=self.trained, where=where)

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
        folders = (self.folder, *(config.output for config in self.request.trainings))
        begun = any(folder.exists() for folder in folders)
        return ("begun" if begun else "missing"), ""


def differences(found: Kept, request: Request) -> list[str]:
    """`name a -> b` of each setting in which a result is not that of the request. A setting that
    was not known when the result was made had its default.
    """
    defaults = defaults_of(request)
    return changed(defaults | found.settings, request.facts)


def runs_of(design: Design) -> list[Run]:
    """The runs that the study compares, the seeds in turn: a first of everything comes first."""
    return [
        Run(design=design, cell=cell, seed=seed)
        for seed in design.table.seeds
        for cell in design.cells()
    ]


def first_request(design: Design, cell: Cell) -> Request:
    """What a cell's run does, with the first of the values that are tuned."""
    tune = design.table.tune
    tried = tune.values[0] if tune is not None and design.is_tuned(cell) else None
    request = Run(design=design, cell=cell, seed=design.table.seeds[0], tried=tried).request
    assert request is not None, "a run that tries a value waits for nothing"
    return request


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
