"""The analysis of variance of a table: `terms` of the connected cells, `one_way` of all rows, the
islands as contrasts, and notes that say what was and what cannot be tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smidgen.errors import SmidgenError, UsageError
from smidgen.statistics.comparisons import (
    MOST_FOR_SHAPIRO,
    MOST_LEVELS,
    kruskal,
    levene,
    shapiro,
    tukey,
)
from smidgen.statistics.config import AnovaConfig
from smidgen.statistics.contrasts import check_cells, island_contrasts
from smidgen.statistics.effects import CONFIDENCE
from smidgen.statistics.islands import parts
from smidgen.statistics.table import Table, make_table, read_table
from smidgen.statistics.terms import Fit, factor_term, nested_tests, terms_of

MOST_SHOWN = 6  # levels of an island


def anova(table: Path | Mapping[str, Sequence[object]], config: AnovaConfig) -> dict[str, Any]:
    """The analysis of a CSV file, or of columns, as one JSON document (docs/statistics.md).

    Raises: UsageError for a column or a cell that is not there, or an interaction without
        replicates; SmidgenError for a table that cannot be analysed.
    """
    if isinstance(table, Path):
        return analyse(read_table(table, config), config)
    return analyse(make_table(table, config, "the table"), config)


@dataclass(frozen=True, kw_only=True)
class Design:
    """What of a table can be analysed together, and the rows of each island beside it."""

    connected: Table
    islands: list[np.ndarray]


def design_of(table: Table, config: AnovaConfig) -> Design:
    """The design of a table, if what is asked of it can be answered.

    Raises: UsageError for a cell that is not there, or an interaction without replicates.
    """
    first, *islands = parts(table)
    connected = table.take(first)
    _check_replicates(connected, config.pairs)
    check_cells(table, config.against_names)
    return Design(connected=connected, islands=islands)


def analyse(table: Table, config: AnovaConfig) -> dict[str, Any]:
    """The same of a table that is read."""
    design = design_of(table, config)
    connected, islands = design.connected, design.islands
    terms = terms_of(connected, config.pairs)
    beside = nested_tests(connected, terms)
    alone = {name: nested_tests(table, [factor_term(table, name)]) for name in table.factors}
    tests = (beside, *alone.values())
    tested = [one for one in tests if one.effects]
    if not tested:
        reasons = [reason for one in tests for reason in (*one.notes, *one.aliased)]
        raise SmidgenError(f"{table.name}: {reasons[0]}")
    one_way = {name: one.effects[name] for name, one in alone.items() if name in one.effects}
    island_names = [_island_name(table.take(rows)) for rows in islands]
    return {
        "table": table.name,
        "metric": table.metric,
        "factors": list(table.factors),
        "blocks": list(table.blocks),
        "rows": len(table),
        "confidence": CONFIDENCE,
        "levels": {name: _means(table, name) for name in table.factors},
        "connected": {"rows": len(connected), "cells": len(connected.cells().names)},
        "terms": {name: asdict(effect) for name, effect in beside.effects.items()},
        "one_way": {name: asdict(effect) for name, effect in one_way.items()},
        "aliased": list(dict.fromkeys([*island_names, *(a for one in tests for a in one.aliased)])),
        "contrasts": island_contrasts(table, islands, config.against_names),
        "tukey": {
            term.name: tukey(connected, terms, term.name, beside.fit)
            for term in terms
            if term.name in table.factors
        },
        "assumptions": {
            "levene": {
                name: levene(one.fit.residuals, table.factors[name]) for name, one in alone.items()
            },
            "shapiro": shapiro(tested[0].fit.residuals),
            "residuals": _residuals(connected if tested[0] is beside else table, tested[0].fit),
        },
        "kruskal": {name: kruskal(table, name) for name in table.factors},
        "notes": [
            *_notes(table, connected, config, bool(islands)),
            *dict.fromkeys(note for one in tests for note in one.notes),
        ],
    }


def _check_replicates(connected: Table, pairs: Sequence[Sequence[str]]) -> None:
    """Raises: UsageError unless every cell of the interactions has two rows."""
    for pair in pairs:
        cells = connected.cells(*pair)
        if cells.counts.min() < 2:
            single = cells.names[int(np.argmin(cells.counts))]
            raise UsageError(
                f"interaction {':'.join(pair)} needs two rows or more in every cell of "
                f"{connected.name}; {single} has {cells.counts.min()}: measure it with another "
                "seed, or leave the interaction out"
            )


def _residuals(table: Table, model: Fit) -> dict[str, list[float]]:
    """What a model says of each row, and by how much the row's value is above that."""
    fitted = table.values - model.residuals
    return {"fitted": fitted.tolist(), "residuals": model.residuals.tolist()}


def _island_name(island: Table) -> str:
    """`input Res_in, Res_out with output Res_in, Res_out`: levels that no other cell shares."""
    listed = []
    for name, levels in island.factors.items():
        more = len(levels.names) - MOST_SHOWN
        names = [*levels.names[:MOST_SHOWN], *([f"{more} more"] if more > 0 else [])]
        listed.append(f"{name} {', '.join(names)}")
    return " with ".join(listed)


def _means(table: Table, name: str) -> list[dict[str, Any]]:
    levels = table.factors[name]
    sums = np.bincount(levels.codes, table.values)
    facts = zip(levels.names, levels.counts, sums, strict=True)
    return [{"level": one, "rows": int(count), "mean": float(s / count)} for one, count, s in facts]


def _notes(table: Table, connected: Table, config: AnovaConfig, has_islands: bool) -> list[str]:
    """What a reader of the numbers must know about the design."""
    cells, notes = connected.cells(), []
    if has_islands:
        notes.append(
            f"terms are of the {len(cells.names)} cells that are connected ({len(connected)} of "
            f"{len(table)} rows); the others share no level with them, and stand as contrasts"
        )
    for name, levels in connected.factors.items():
        if len(levels.names) == 1:
            notes.append(f"{name} is always {levels.names[0]} in the connected cells: no term")
    if len(table.factors) > 1:
        if cells.counts.max() == 1:
            notes.append(
                "each cell has one row: no interaction can be tested, and what there is of one is "
                "part of the error; measure each cell with two seeds or more to test it"
            )
        elif not config.pairs:
            notes.append(
                "terms are additive: what factors do only together is part of the error; "
                "--interaction a:b tests it where every cell has two rows"
            )
        if not _is_crossed(table):
            notes.append(
                "factors are not crossed evenly: a term is what a factor adds to the others, while "
                "one_way has what goes with its levels too"
            )
    if any(len(levels.names) > MOST_LEVELS for levels in connected.factors.values()):
        notes.append(f"no Tukey comparisons of a factor with more than {MOST_LEVELS} levels")
    if len(connected) > MOST_FOR_SHAPIRO:
        notes.append(f"no Shapiro-Wilk test of more than {MOST_FOR_SHAPIRO:,} rows")
    return notes


def _is_crossed(table: Table) -> bool:
    """Whether every combination of levels has the same number of rows."""
    counts = table.cells().counts
    possible = np.prod([len(levels.names) for levels in table.factors.values()])
    return len(counts) == possible and np.ptp(counts) == 0
