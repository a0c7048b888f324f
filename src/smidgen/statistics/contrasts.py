"""Cells that share no level with the rest, compared with it: no model can say which of their levels
does what, but their means can be compared as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from smidgen.errors import UsageError, closest, shown
from smidgen.statistics.comparisons import holm, interval
from smidgen.statistics.effects import CONFIDENCE
from smidgen.statistics.table import Levels, Table
from smidgen.statistics.terms import Fit, Term, block_terms, factor_term, fit

MEAN = "the mean of the connected cells"


def check_cells(table: Table, names: Sequence[str]) -> None:
    """Raises: UsageError for a cell that is not there."""
    cells = table.cells()
    for name in names:
        if name not in cells.names:
            near = closest(name, cells.names)
            raise UsageError(f'{table.name} has no cell "{shown(name)}" to compare with{near}')


def island_contrasts(
    table: Table, islands: Sequence[np.ndarray], against: Sequence[str]
) -> list[dict[str, Any]]:
    """Each cell of the islands (rows of the table) less the cells that `against` names, or less the
    mean of all other cells if it names none: t tests with Holm's correction over all of them.

    Without an error to test against there are none.
    """
    cells = table.cells()
    apart = sorted({int(cells.codes[row]) for rows in islands for row in rows})
    rest = [code for code in range(len(cells.names)) if code not in apart]
    others = {name: [cells.names.index(name)] for name in against} or {MEAN: rest}
    pairs = [(one, name) for one in apart for name in others if others[name] != [one]]
    model = _model(table)
    if model is None or not pairs:
        return []
    terms, error = model
    means = _cell_means(cells, terms)
    weights = np.zeros((len(pairs), error.space.right.shape[1]))
    for row, (one, name) in enumerate(pairs):
        weights[row, 1 : 1 + means.shape[1]] = means[one] - means[others[name]].mean(axis=0)
    differences, factors = error.space.contrasts(table.values, weights)
    errors = np.sqrt(error.mean_square * factors)
    p = 2 * stats.t.sf(np.abs(differences) / errors, error.df_residual)
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, error.df_residual) * errors
    found = np.flatnonzero(np.isfinite(differences))  # not those that no block has both of
    return [
        {
            "cell": cells.names[pairs[row][0]],
            "against": pairs[row][1],
            "difference": float(differences[row]),
            "interval": interval(differences[row], reach[row]),
            "t": float(differences[row] / errors[row]),
            "df": error.df_residual,
            "p": float(p[row]),
            "p_holm": corrected,
        }
        for row, corrected in zip(found, holm(p[found].tolist()), strict=True)
    ]


def _model(table: Table) -> tuple[list[Term], Fit] | None:
    """The model of all cells, whose error is that within them; the additive one if no cell has two
    rows. Its terms come before the blocks. None if neither leaves an error.
    """
    additive = [factor_term(table, name) for name in table.factors]
    for terms in ([factor_term(table, *table.factors)], additive):
        error = fit(table, [*terms, *block_terms(table)])
        if error.has_error:
            return terms, error
    return None


def _cell_means(cells: Levels, terms: Sequence[Term]) -> np.ndarray:
    """(cells, P): the mean of each cell as a sum of the terms' coefficients."""
    first_rows = [int(np.argmax(cells.codes == code)) for code in range(len(cells.names))]
    return np.hstack([term.levels.indicators[first_rows] for term in terms])
