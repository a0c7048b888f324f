"""Beside the F tests: which levels differ (Tukey), whether the assumptions hold (Levene, Shapiro),
a test by ranks (Kruskal-Wallis), and the correction for many comparisons (Holm).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats
from scipy.integrate import IntegrationWarning

from smidgen.statistics.effects import CONFIDENCE
from smidgen.statistics.table import Levels, Table
from smidgen.statistics.terms import Fit, Term, block_terms, span

MOST_LEVELS = 20  # of Tukey's comparisons: 190 pairs, two seconds
MOST_FOR_SHAPIRO = 5000  # rows, up to which its p is known (Royston 1995)


def tukey(table: Table, terms: Sequence[Term], name: str, error: Fit) -> list[dict[str, Any]]:
    """Every two levels of a factor: the difference beside the other terms and the blocks, and its
    interval and p for all pairs together (Tukey 1953, Kramer 1956: the studentized range).

    `error` is the model of all terms and blocks. None for one level, or more than MOST_LEVELS.
    """
    factor = next(term for term in terms if term.name == name)
    names = factor.levels.names
    if not error.has_error or not 2 <= len(names) <= MOST_LEVELS:
        return []
    others = [term for term in (*block_terms(table), *terms) if not factor.within(term)]
    space = span(table, [factor, *others])
    pairs = np.array(list(combinations(range(len(names)), 2)))
    weights = np.zeros((len(pairs), space.right.shape[1]))
    rows = np.arange(len(pairs))
    weights[rows, 1 + pairs[:, 0]], weights[rows, 1 + pairs[:, 1]] = 1, -1  # behind the constant
    differences, factors = space.contrasts(table.values, weights)
    # of one mean: the studentized range is of difference / error
    errors = np.sqrt(error.mean_square * factors / 2)
    shape = len(names), error.df_residual
    with warnings.catch_warnings(action="ignore", category=IntegrationWarning):  # where p is near 0
        p = stats.studentized_range.sf(np.abs(differences) / errors, *shape)
        reach = stats.studentized_range.ppf(CONFIDENCE, *shape) * errors
    return [
        {
            "levels": [names[first], names[second]],
            "difference": float(differences[row]),
            "interval": interval(differences[row], reach[row]),
            "p": float(p[row]),
        }
        for row, (first, second) in enumerate(pairs)
        if np.isfinite(differences[row])
    ]


def interval(middle: float, reach: float) -> list[float]:
    """What lies within reach on both sides."""
    return [float(middle - reach), float(middle + reach)]


def levene(values: np.ndarray, levels: Levels) -> dict[str, float] | None:
    """Whether the levels have one variance: Levene's test about medians (Brown and Forsythe 1974).
    None if no level has two different values.
    """
    groups = [values[levels.codes == code] for code in np.flatnonzero(levels.counts > 1)]
    if len(groups) < 2 or all(np.ptp(group) == 0 for group in groups):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):  # where all are as far from their median
        found = stats.levene(*groups, center="median")
    return _finite({"statistic": float(found.statistic), "p": float(found.pvalue)})


def shapiro(residuals: np.ndarray) -> dict[str, float] | None:
    """Whether residuals are normal (Shapiro and Wilk 1965). None for fewer than 3 or too many."""
    if not 3 <= len(residuals) <= MOST_FOR_SHAPIRO or np.ptp(residuals) == 0:
        return None
    found = stats.shapiro(residuals)
    return _finite({"statistic": float(found.statistic), "p": float(found.pvalue)})


def kruskal(table: Table, name: str) -> dict[str, float]:
    """Whether the levels of a factor rank alike (Kruskal and Wallis 1952), the means of the blocks
    taken off before (aligned ranks, Hodges and Lehmann 1962).
    """
    levels = table.factors[name]
    aligned = span(table, block_terms(table)).residuals(table.values)
    # what differs by rounding only is a tie
    aligned = np.round(aligned / np.abs(table.values).max(), 12)
    found = stats.kruskal(*(aligned[levels.codes == code] for code in range(len(levels.names))))
    return {
        "statistic": float(found.statistic),
        "df": len(levels.names) - 1,
        "p": float(found.pvalue),
    }


def holm(p: Sequence[float]) -> list[float]:
    """p that hold for all comparisons together (Holm 1979), in the order of those given."""
    adjusted, largest = [0.0] * len(p), 0.0
    for done, place in enumerate(np.argsort(p, kind="stable")):
        largest = max(largest, min(1.0, p[place] * (len(p) - done)))
        adjusted[place] = largest
    return adjusted


def _finite(found: dict[str, float]) -> dict[str, float] | None:
    return found if np.isfinite(list(found.values())).all() else None
