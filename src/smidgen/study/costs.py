"""What a training of each arm costs, as STUDY/time.json has it, which timing.py writes."""

from __future__ import annotations

from typing import Any

import msgspec

from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, read_json
from smidgen.files.standing import changed
from smidgen.study.design import DRAWN, Cell, Design
from smidgen.study.request import Request
from smidgen.study.runs import first_request

TIMES = "time.json"


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of an arm: the median milliseconds of a step with quartiles over the rounds, the same of its
    ratio to the reference's step in the same round, and operations in GFLOP: of a step, of all
    steps, of the training whose delta it begins from, and of the base's training where the recipe
    says how many images that saw.
    """

    settings: dict[str, Any]
    step_ms: tuple[float, float, float]
    ratio: tuple[float, float, float]
    step_gflops: float
    gflops: float
    gflops_before: float = 0.0
    gflops_of_base: float | None = None


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of time.json."""

    reference: str
    rounds: int
    threads: int
    arms: dict[str, Cost]


def training_name(design: Design, cell: Cell) -> str:
    """The levels of an arm but those that change only how is drawn, which cost no training."""
    return ":".join(cell[name] for name in design.arms if name not in design.drawn) or "all"


def requests_of(design: Design) -> tuple[dict[str, Request], dict[str, str]]:
    """What a first run of each training does, and of those that cannot be why."""
    requests: dict[str, Request] = {}
    left_out: dict[str, str] = {}
    for cell in design.cells():
        name = training_name(design, cell)
        if name in requests or name in left_out:
            continue
        try:
            requests[name] = first_request(design, cell)
        except SmidgenError as error:
            left_out[name] = str(error)
    return requests, left_out


def timed_settings(design: Design, request: Request) -> dict[str, Any]:
    """The facts of a training on which its cost depends."""
    tune = design.table.tune
    others = ("seed", "data", "reference", *([] if tune is None else [tune.setting]))
    return {
        name: value
        for name, value in request.facts.items()
        if not name.startswith((DRAWN, "evaluation.")) and name not in others
    }


def times_of(design: Design) -> tuple[Times | None, list[str]]:
    """What time.json says of trainings as they are now, None without one, and notes on those that
    were timed with other settings.
    """
    try:
        times = read_json(design.output / TIMES, Times)
    except Unreadable:
        return None, []
    requests, _ = requests_of(design)
    notes, kept = [], {}
    for name, cost in times.arms.items():
        request = requests.get(name)
        if request is None:
            continue
        if different := changed(cost.settings, timed_settings(design, request)):
            notes.append(f"{name} was timed with other settings ({', '.join(different)})")
        else:
            kept[name] = cost
    return msgspec.structs.replace(times, arms=kept), notes
