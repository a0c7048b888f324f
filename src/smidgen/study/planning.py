"""What a study would do: its runs, what each arm trains, which cells cannot be, and the hours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from smidgen.api.planning import time_steps
from smidgen.api.weights import count_weights, reader_without_weights
from smidgen.data.embedded_sets import SETS, classes_of_set
from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.toml import toml
from smidgen.hosts.host import find_host
from smidgen.models.architectures import meta_network
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sampling.draw import prepare
from smidgen.study.design import FIRST, VALIDATION_LOSS, Cell, Design
from smidgen.study.measuring import loaded
from smidgen.study.request import Request
from smidgen.study.runs import Run, first_request, runs_of, states, tuning_of

PROBED = 2  # sampling steps of the estimate


def plan_study(design: Design, *, timed: bool = False) -> dict[str, Any]:
    """The number of runs by state, what each cell trains (`parameters`, `share`) or why it cannot
    be (`reason`), and with `timed` the seconds of all that is still to be done, from a few steps of
    each arm and a few of its sampling on this machine.

    Raises: UsageError for settings that make no sense for any cell.
    """
    runs, tuning = runs_of(design), tuning_of(design)
    cells = [_counted(design, cell) for cell in design.cells()]
    counts: dict[str, int] = {}
    for _, state, _ in states(runs):
        counts[state] = counts.get(state, 0) + 1
    plan = {
        "output": str(design.output),
        "runs": len(runs),
        "tuning_runs": len(tuning),
        "states": counts,
        "cells": cells,
        "impossible": sum("reason" in cell for cell in cells),
    }
    if plan["impossible"] == len(cells):
        raise UsageError(f"{design.source}: no cell can be: {cells[0]['reason']}")
    return plan | ({"time": _time(design, [*tuning, *runs])} if timed else {})


def _counted(design: Design, cell: Cell) -> dict[str, Any]:
    """A row of the plan."""
    row: dict[str, Any] = {"cell": dict(cell)}
    try:
        request = first_request(design, cell)
        base, config = request.base.base, request.config
        has_labels = find_host(meta_network(base)).has_labels
        reads = config.encodes_in_step and not has_labels
        train_labels = config.training.train_labels
        found = count_weights(
            base,
            num_classes=num_classes(request) if has_labels and train_labels else None,
            method=config.method,
            method_config=config.method_config,
            reader=reader_without_weights(base, None) if reads else None,
            trains_encoders=reads and config.trains_encoders,
            token=config.token,
            train_labels=train_labels,
        )
    except SmidgenError as error:
        return row | {"reason": str(error)}
    if request.first is not None:
        of_first = {
            k.removeprefix(FIRST): v for k, v in request.facts.items() if k.startswith(FIRST)
        }
        row["begins_from"] = of_first
    return row | {"parameters": found["trainable"], "share": found["share"]}


def num_classes(request: Request) -> int:
    """Of the images; of a subject's pictures, which are of one."""
    if request.config.task == DREAMBOOTH:
        return 1
    if request.data in SETS:
        return len(classes_of_set(request.data))
    config = request.config
    found = open_images(config.data, layout=config.layout, split=config.split, decode=False)
    return len(found.classes)


def _time(design: Design, runs: list[Run]) -> dict[str, float]:
    """Seconds: of a probe of each arm, times its runs that are still to be done."""
    probed: dict[tuple[str, ...], tuple[float, float]] = {}
    counted: set[Path] = set()
    training = sampling = 0.0
    for run, state, _ in states(runs):
        if state in ("finished", "failed"):
            continue
        arm = tuple(design.arm_of(run.cell).values())
        if arm not in probed:
            probed[arm] = _probe(first_request(design, run.cell))
        steps, drawing = probed[arm]
        if run.trained not in counted:  # runs that differ in how is drawn share a training
            training += steps
            counted.add(run.trained)
        tune = design.table.tune
        judged = run.tried is None or (tune is not None and tune.metric != VALIDATION_LOSS)
        sampling += drawing if judged else 0.0
    return {
        "training_seconds": round(training, 1),
        "sampling_seconds": round(sampling, 1),
        "hours": round((training + sampling) / 3600, 2),
    }


def _probe(request: Request) -> tuple[float, float]:
    """Seconds of all training steps, and of drawing the samples."""
    base, training = loaded(request.base), seconds_of_training(request)
    sampling = request.sampling
    few = replace(sampling, num_images=sampling.batch_size, steps=PROBED, edits="all")
    if base.conditioner is not None:
        few = replace(few, prompt=("a picture",))
    drawing = prepare(base, few)
    next(iter(drawing.batches()))  # what is prepared once
    begun = time.perf_counter()
    next(iter(drawing.batches()))
    each = (time.perf_counter() - begun) / (PROBED * sampling.batch_size)
    # of a subject four of each of its prompts, unless told, with the delta and without
    count = request.num_images if request.reference is not None else sampling.num_images or 104
    return training, each * sampling.steps * count


def seconds_of_training(request: Request) -> float:
    """Of all its steps and those of the training before, by a few of each."""
    before = 0.0 if request.first is None else seconds_of_training(request.first)
    timed = time_steps(loaded(request.base), request.config, num_classes(request))
    return before + timed["seconds"]


def lines_of(plan: Mapping[str, Any]) -> Iterator[str]:
    """The plan for a person."""
    yield f"{plan['runs']} runs, and {plan['tuning_runs']} that tune, in {plan['output']}"
    for row in plan["cells"]:
        name = " ".join(row["cell"].values())
        if "reason" in row:
            yield f"  {name}: cannot be: {row['reason']}"
        else:
            begun = ", ".join(f"{k} {toml(v)}" for k, v in row.get("begins_from", {}).items())
            begun = f", begins from a delta trained first with {begun}" if begun else ""
            yield f"  {name}: {row['parameters']:,} parameters, {row['share']:.3%}{begun}"
    yield ", ".join(f"{count} {state}" for state, count in plan["states"].items())
    if "time" in plan:
        found = plan["time"]
        yield (
            f"about {found['hours']:.2f} hours of this machine for what is to be done: "
            f"{found['training_seconds']:,.0f} s of training, {found['sampling_seconds']:,.0f} s "
            "of drawing; encoding and measuring come on top"
        )
