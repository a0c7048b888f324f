"""The table of a study: a row for each run, with what is known of it. STUDY/table.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from smidgen.files.run_files import RESULT
from smidgen.files.toml import toml
from smidgen.files.writing import write_text
from smidgen.study.design import Design
from smidgen.study.runs import runs_of, states

TABLE = "table.csv"
ROW_COLUMNS = ("seed", "state")


def rows_of(design: Design) -> list[dict[str, Any]]:
    """A row for each run in the order of the design: the levels, seed, state, what was tuned, the
    numbers of the training and of the evaluation, baselines as `name of_what`. A run without a
    result has no numbers: nothing is averaged in that was measured otherwise.
    """
    rows = []
    for run, state, why in states(runs_of(design)):
        row: dict[str, Any] = {**run.cell, "seed": run.seed, "state": state}
        if why:
            row["why"] = why
        found = run.kept(RESULT) if state == "finished" else None
        if found is not None:
            if (tune := design.table.tune) is not None:
                row[tune.setting] = (run.settings or {}).get(tune.setting)
            row |= {name: one for name, one in found.training.items() if one is not None}
            row |= {name: one for name, one in found.metrics.items() if one is not None}
            row |= {name: one for name, one in found.baselines.items() if one is not None}
        rows.append(row)
    return rows


def finished(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that have their numbers."""
    return [row for row in rows if row["state"] == "finished"]


def write_table(design: Design, rows: Sequence[Mapping[str, Any]]) -> None:
    """STUDY/table.csv, which `smidgen anova` reads."""
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        values = (row.get(name, "") for name in names)
        writer.writerow([one if isinstance(one, str) else toml(one) for one in values])
    write_text(text.getvalue(), design.output / TABLE)
