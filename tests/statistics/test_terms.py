"""Nested models at their ranks, against statsmodels where designs are full rank, against least
squares written out, and where statsmodels is wrong.
"""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

from smidgen.statistics.terms import factor_term, fit, nested_tests, terms_of

from .designs import CONNECTED, crossed, paper, paper_table, table_of

BALANCED = [[3, 3, 3], [3, 3, 3]]
UNBALANCED = [[2, 4, 3], [5, 2, 6]]
WITH_A_GAP = [[2, 4, 0], [5, 2, 6], [0, 3, 3]]


def of_statsmodels(columns, formula):
    return anova_lm(smf.ols(formula, pd.DataFrame(columns)).fit(), typ=2)


@pytest.mark.parametrize("counts", [BALANCED, UNBALANCED])
@pytest.mark.parametrize("blocks", ["", "k"])
@pytest.mark.parametrize("pairs", [[], [("a", "b")]])
def test_full_rank_designs_give_the_type_ii_table_of_statsmodels(counts, blocks, pairs):
    columns = crossed(counts)
    table = table_of(columns, metric="y", factors="a,b", blocks=blocks)
    found = nested_tests(table, terms_of(table, pairs))
    formula = "y ~ C(a) + C(b)" + (" + C(a):C(b)" if pairs else "") + (" + C(k)" if blocks else "")
    reference = of_statsmodels(columns, formula)
    names = {"a": "C(a)", "b": "C(b)", "a:b": "C(a):C(b)"}
    assert set(found.effects) == {"a", "b", *([":".join(pair) for pair in pairs])}
    assert found.aliased == []
    for name, effect in found.effects.items():
        row = reference.loc[names[name]]
        assert effect.df == row["df"]
        assert effect.df_residual == reference.loc["Residual", "df"]
        assert (effect.sum_of_squares, effect.F) == pytest.approx(
            (row["sum_sq"], row["F"]), rel=1e-9
        )
        assert effect.p == pytest.approx(row["PR(>F)"], rel=1e-6)


def test_one_way_is_that_of_statsmodels_within_blocks():
    columns = crossed(UNBALANCED)
    table = table_of(columns, metric="y", factors="b", blocks="k")
    effect = nested_tests(table, terms_of(table, [])).effects["b"]
    reference = of_statsmodels(columns, "y ~ C(b) + C(k)").loc["C(b)"]
    assert (effect.F, effect.p) == pytest.approx((reference["F"], reference["PR(>F)"]), rel=1e-9)


def test_an_unbalanced_table_with_an_interaction_gives_what_is_written_out():
    """a: 2 levels, b: 2, with 2, 3, 4 and 2 rows in the cells."""
    cells = {
        ("x", "p"): [1.0, 2.0],
        ("x", "q"): [4.0, 5.0, 6.0],
        ("y", "p"): [2.0, 2.5, 3.0, 4.5],
        ("y", "q"): [9.0, 12.0],
    }
    rows = [(a, b, y) for (a, b), ys in cells.items() for y in ys]
    columns = dict(zip("aby", map(list, zip(*rows, strict=True)), strict=True))
    a, b = (np.array([float(one in ("y", "q")) for one in columns[name]]) for name in "ab")
    y, one = np.array(columns["y"]), np.ones(len(rows))

    def rss(*regressors):
        design = np.stack([one, *regressors], axis=1)
        return np.sum((y - design @ np.linalg.lstsq(design, y)[0]) ** 2)

    # within cells: 1/2, 2, 3.5, 9/2
    assert rss(a, b, a * b) == pytest.approx(0.5 + 2 + 3.5 + 4.5)
    error = 10.5 / 7
    expected = {
        "a": (rss(b) - rss(a, b)) / error,
        "b": (rss(a) - rss(a, b)) / error,
        "a:b": (rss(a, b) - 10.5) / error,
    }
    table = table_of(columns, metric="y", factors="a,b")
    effects = nested_tests(table, terms_of(table, [("a", "b")])).effects
    total = np.sum((y - y.mean()) ** 2)
    for name, ratio in expected.items():
        effect = effects[name]
        assert (effect.df, effect.df_residual, effect.F) == pytest.approx((1, 7, ratio), abs=1e-6)
        squares = ratio * error
        assert effect.eta_squared == pytest.approx(squares / total, abs=1e-6)
        assert effect.partial_eta_squared == pytest.approx(squares / (squares + 10.5), abs=1e-6)
        omega = (squares - error) / (total + error)
        assert effect.omega_squared == pytest.approx(omega, abs=1e-6)
        partial = (ratio - 1) / (ratio - 1 + len(rows))
        assert effect.partial_omega_squared == pytest.approx(partial, abs=1e-6)


def test_empty_cells_change_the_ranks_and_nothing_else():
    """The additive model is full rank there; the interaction has a degree of freedom for each cell
    beyond the additive parameters.
    """
    columns = crossed(WITH_A_GAP)
    table = table_of(columns, metric="y", factors="a,b")
    effects = nested_tests(table, terms_of(table, [("a", "b")])).effects
    additive = smf.ols("y ~ C(a) + C(b)", pd.DataFrame(columns)).fit()
    columns["cell"] = [f"{a}{b}" for a, b in zip(columns["a"], columns["b"], strict=True)]
    cells = smf.ols("y ~ C(cell)", pd.DataFrame(columns)).fit()
    assert effects["a:b"].df == 7 - (1 + 2 + 2)
    assert effects["a:b"].sum_of_squares == pytest.approx(additive.ssr - cells.ssr, rel=1e-9)
    assert effects["a"].mean_square_residual == pytest.approx(cells.mse_resid, rel=1e-9)


def test_textbook_tables_find_an_effect_of_the_output_where_there_is_none_and_ours_do_not():
    """The simulation: 20 pairs, 3 seeds, metrics that depend on the input alone."""
    found, theirs = [], []
    for seed in range(5):
        columns = paper(seed=seed)
        table = table_of(columns, metric="clip_i", factors="input,output")
        found.append(nested_tests(table, terms_of(table, [])).effects["output"])
        renamed = {"inp": columns["input"], "out": columns["output"], "y": columns["clip_i"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # statsmodels warns of the singular matrix
            theirs.append(of_statsmodels(renamed, "y ~ C(inp) + C(out)").loc["C(out)"])
    assert {(one.df, one.df_residual) for one in found} == {(4, 46)}
    assert all(one.p > 0.01 for one in found)
    assert np.mean([one.F for one in found]) < 2
    assert all(row["PR(>F)"] < 1e-5 for row in theirs)
    # of seed 0: a false effect with textbook confidence, and none
    assert theirs[0]["F"] == pytest.approx(20.9, abs=0.05)
    assert (found[0].F, found[0].p) == pytest.approx((0.21, 0.93), abs=0.005)


def test_the_connected_pairs_alone_give_what_statsmodels_gives_of_them():
    columns = paper()
    table = paper_table()
    kept = [pair in CONNECTED for pair in zip(columns["input"], columns["output"], strict=True)]
    connected = table.take(np.array(kept))
    effects = nested_tests(connected, terms_of(connected, [])).effects
    frame = pd.DataFrame(columns | {"inp": columns["input"]}).loc[kept]
    reference = of_statsmodels(frame, "clip_i ~ C(inp) + C(output)")
    for name, theirs in (("input", "C(inp)"), ("output", "C(output)")):
        row = reference.loc[theirs]
        assert (effects[name].df, effects[name].F) == pytest.approx((row["df"], row["F"]), rel=1e-9)


def test_an_interaction_on_the_staircase_has_six_degrees_of_freedom_and_gives_the_error():
    table = paper_table()
    connected = table.take(np.arange(48))
    effects = nested_tests(connected, terms_of(connected, [("input", "output")])).effects
    assert effects["input:output"].df == 16 - (7 + 4 - 1)
    cells = connected.cells()
    within = sum(np.var(connected.values[cells.codes == one]) * 3 for one in range(16))
    assert effects["output"].mean_square_residual == pytest.approx(within / (48 - 16), rel=1e-9)


def test_a_factor_that_goes_with_the_blocks_is_named_with_what_it_shares():
    columns = {
        "method": ["a", "b", "a", "b", "c", "d", "c", "d"],
        "set": ["one"] * 4 + ["two"] * 4,
        "fd": [1.0, 2.0, 1.5, 2.25, 7.0, 8.0, 7.5, 8.5],
    }
    table = table_of(columns, metric="fd", factors="method", blocks="set")
    outcome = nested_tests(table, [factor_term(table, "method")])
    assert outcome.aliased == ["method with set: 1 of its 3 degrees of freedom"]
    assert outcome.effects["method"].df == 2  # a against b, c against d
    squares = (1.25 - 2.125) ** 2 + (7.25 - 8.25) ** 2  # two rows each: 2 * (d / 2)^2 * 2
    assert outcome.effects["method"].sum_of_squares == pytest.approx(squares, rel=1e-12)


def test_the_half_fraction_of_a_factorial_names_the_interaction_of_each_factor():
    """2^(3-1) with c = ab: the interaction a:b cannot be told from c."""
    signs = [(-1, -1, 1), (-1, 1, -1), (1, -1, -1), (1, 1, 1)] * 2
    columns = {name: [str(row[place]) for row in signs] for place, name in enumerate("abc")}
    measured = {"y": [1.0, 2.0, 4.0, 3.0, 1.5, 2.25, 4.0, 3.5]}
    table = table_of(columns | measured, metric="y", factors="a,b,c")
    outcome = nested_tests(table, terms_of(table, [("a", "b")]))
    assert set(outcome.effects) == {"a", "b"}
    assert outcome.aliased == [
        "c with a:b: 1 of its 1 degrees of freedom",
        "a:b with c: 1 of its 1 degrees of freedom",
    ]


@pytest.mark.parametrize(
    ("values", "reason"),
    [([1.0, 2.0, 4.0, 3.0], "as many parameters"), ([1.0, 1.0, 4.0, 4.0], "fits every row")],
)
def test_without_an_error_nothing_is_tested_and_the_reason_is_said(values, reason):
    levels = ["p", "q", "r", "s"] if "parameters" in reason else ["p", "p", "q", "q"]
    table = table_of({"a": levels, "y": values}, metric="y", factors="a")
    outcome = nested_tests(table, terms_of(table, []))
    assert outcome.effects == {}
    assert reason in outcome.notes[0]
    assert not fit(table, terms_of(table, [])).has_error
