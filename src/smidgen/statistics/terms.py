"""Terms of a model, and the F test of each by nested models at their ranks: its squares are
RSS(without) - RSS(with), its degrees of freedom the difference of the ranks.

A term is tested beside all others but the interactions that contain it (type II, Yates 1934); the
error is that of the model with all terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smidgen.statistics.effects import Effect, Squares, effect_of
from smidgen.statistics.linear import Space
from smidgen.statistics.permutation import permutation_p
from smidgen.statistics.table import Levels, Table


@dataclass(frozen=True)
class Term:
    """A factor or a block with its levels, or an interaction with the cells of its factors."""

    factors: tuple[str, ...]
    levels: Levels

    @property
    def name(self) -> str:
        return ":".join(self.factors)

    def within(self, other: Term) -> bool:
        """Whether the other one's cells tell its levels: a in a:b, and in a itself."""
        return set(self.factors) <= set(other.factors)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A model of a table's values about their mean, and what it leaves for an error."""

    space: Space
    residuals: np.ndarray  # (N,)
    df_residual: int
    has_error: bool
    """Whether more than rounding is left."""

    @property
    def squares(self) -> float:
        """RSS."""
        return float(self.residuals @ self.residuals)

    @property
    def mean_square(self) -> float:
        """The variance of the error."""
        return self.squares / self.df_residual


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The effects that could be tested, by term, with the model of all terms; `aliased` names those
    that share degrees of freedom with others, `notes` say why nothing could be tested.
    """

    effects: dict[str, Effect]
    fit: Fit
    aliased: list[str]
    notes: list[str]


def factor_term(table: Table, *names: str) -> Term:
    """A factor, or the interaction of several."""
    return Term(names, table.factors[names[0]] if len(names) == 1 else table.cells(*names))


def terms_of(table: Table, pairs: Sequence[Sequence[str]]) -> list[Term]:
    """The factors that differ, and the interactions of pairs of them."""
    differing = [name for name, levels in table.factors.items() if len(levels.names) > 1]
    mains = [factor_term(table, name) for name in differing]
    return mains + [factor_term(table, *pair) for pair in pairs]


def block_terms(table: Table) -> list[Term]:
    return [Term((name,), levels) for name, levels in table.blocks.items()]


def span(table: Table, terms: Sequence[Term]) -> Space:
    """What the terms explain together."""
    return Space.of(len(table), [term.levels.indicators for term in terms])


def fit(table: Table, terms: Sequence[Term]) -> Fit:
    """Least squares of the values on the terms."""
    space = span(table, terms)
    residuals = space.residuals(table.values - table.values.mean())
    df_residual = len(table) - space.rank
    rounding = 8 * np.finfo(float).eps * np.abs(table.values).max()
    has_error = df_residual > 0 and bool(residuals @ residuals > len(table) * rounding**2)
    return Fit(space=space, residuals=residuals, df_residual=df_residual, has_error=has_error)


def nested_tests(table: Table, terms: Sequence[Term]) -> Outcome:
    """The test of each term beside the others, and beside the blocks of the table."""
    values = table.values - table.values.mean()
    blocks = block_terms(table)
    whole = fit(table, [*blocks, *terms])
    aliased, effects = [], {}
    for term in terms:
        others = [*blocks, *(other for other in terms if not term.within(other))]
        without, beside = span(table, others), span(table, [*others, term])
        df = beside.rank - without.rank
        aliased += _aliased(table, term, others, df)
        if df == 0 or not whole.has_error:
            continue
        difference = beside.fitted(values) - without.fitted(values)
        squares = Squares(
            effect=float(difference @ difference),
            df=df,
            residual=whole.squares,
            df_residual=whole.df_residual,
            total=float(values @ values),
            rows=len(table),
        )
        chance = permutation_p(values, table.block_groups, without, beside, whole.space)
        effects[term.name] = effect_of(squares, chance)
    notes = [] if whole.has_error or not terms else [_no_error(terms, whole)]
    return Outcome(effects=effects, fit=whole, aliased=aliased, notes=notes)


def _no_error(terms: Sequence[Term], whole: Fit) -> str:
    listed = " and ".join(term.name for term in terms)
    if whole.df_residual > 0:
        return (
            f"{listed} cannot be tested: the model fits every row, which leaves no error; if rows "
            "are copies of each other, give each cell one"
        )
    return (
        f"{listed} cannot be tested: {len(whole.residuals)} rows and as many parameters leave "
        "nothing for an error; measure cells more than once, or name fewer factors"
    )


def _aliased(table: Table, term: Term, others: Sequence[Term], df: int) -> list[str]:
    """One line, if others share degrees of freedom of a term that has only `df` beside them."""
    inside = [other for other in others if other.within(term)]
    alone = span(table, [*inside, term]).rank - span(table, inside).rank
    if df == alone:
        return []
    outside = [other for other in others if other not in inside]
    sharing = []
    for one in outside:
        rest = [other for other in others if other is not one]
        gained = span(table, [*rest, term]).rank - span(table, rest).rank
        sharing += [one.name] if gained > df else []
    listed = " and ".join(sharing or [one.name for one in outside])
    return [f"{term.name} with {listed}: {alone - df} of its {alone} degrees of freedom"]
