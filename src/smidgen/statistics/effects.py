"""One effect of an analysis of variance: its F test and how large it is, with intervals.

Intervals invert the noncentral F: F is noncentral F(df, df_residual) with noncentrality L, and the
effect's share of the variance is L / (L + N), or L / (L + N + others) with what the other terms
hold (Steiger 2004, "Beyond the F test"; docs/decisions/0016).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scipy.optimize import root_scalar
from scipy.stats import f as central
from scipy.stats import ncf

CONFIDENCE = 0.95

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Squares:
    """What an effect is measured by: its sum of squares and that of the error, with their degrees
    of freedom, and the sum of squares of all `rows` about their mean.
    """

    effect: float
    df: int
    residual: float
    df_residual: int
    total: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class Effect:
    """The test of one term, and its size in four ways, each with its interval of CONFIDENCE.

    eta squared is the share of all squares, its partial form the share of the effect's and the
    error's. omega squared is the same share in the population without eta's upward bias; it may be
    below zero. Both estimate one number, so they have one interval.
    """

    sum_of_squares: float
    df: int
    df_residual: int
    mean_square_residual: float
    F: float
    p: float
    eta_squared: float
    eta_squared_interval: Interval
    partial_eta_squared: float
    partial_eta_squared_interval: Interval
    omega_squared: float
    omega_squared_interval: Interval
    partial_omega_squared: float
    partial_omega_squared_interval: Interval
    permutation_p: float | None
    """p by permuting residuals (comparisons.py), which needs no normal errors; None: cannot be."""


def effect_of(squares: Squares, permutation_p: float | None) -> Effect:
    """The effect that sums of squares show. Their error must be more than nothing."""
    one = squares
    error = one.residual / one.df_residual
    ratio = one.effect / one.df / error
    # noncentrality of all other terms and blocks, as far as they exceed the error
    df_others = one.rows - 1 - one.df - one.df_residual
    others = max(0.0, (one.total - one.effect - one.residual) / error - df_others)
    bounds = noncentrality(ratio, one.df, one.df_residual)
    whole, partial = (_shares(bounds, one.rows + beside) for beside in (others, 0.0))
    excess = one.effect - one.df * error
    return Effect(
        sum_of_squares=one.effect,
        df=one.df,
        df_residual=one.df_residual,
        mean_square_residual=error,
        F=ratio,
        p=float(central.sf(ratio, one.df, one.df_residual)),
        eta_squared=one.effect / one.total,
        eta_squared_interval=whole,
        partial_eta_squared=one.effect / (one.effect + one.residual),
        partial_eta_squared_interval=partial,
        omega_squared=excess / (one.total + error),
        omega_squared_interval=whole,
        partial_omega_squared=excess / (excess + one.rows * error),
        partial_omega_squared_interval=partial,
        permutation_p=permutation_p,
    )


def _shares(bounds: Interval, beside: float) -> Interval:
    low, high = (bound / (bound + beside) for bound in bounds)
    return low, high


def noncentrality(ratio: float, df: int, df_residual: int) -> Interval:
    """The interval of the noncentrality of an F of which `ratio` was seen."""
    tail = (1 - CONFIDENCE) / 2

    def excess(probability: float) -> Callable[[float], float]:
        """cdf of the noncentral F less a probability: falls as the noncentrality grows."""
        return lambda value: float(ncf.cdf(ratio, df, df_residual, value)) - probability

    def root(probability: float) -> float:
        distance = excess(probability)
        if distance(0.0) <= 0:
            return 0.0
        most = df * ratio + df
        while distance(most) > 0:
            most *= 2
        return float(root_scalar(distance, bracket=(0.0, most), xtol=1e-10).root)

    return root(1 - tail), root(tail)
