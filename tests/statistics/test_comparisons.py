"""Tukey, Levene, Shapiro, Kruskal-Wallis and Holm against scipy, statsmodels and by hand."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats
from statsmodels.stats.multitest import multipletests

from smidgen.statistics.comparisons import holm, kruskal, levene, shapiro, tukey
from smidgen.statistics.terms import block_terms, factor_term, fit, terms_of

from .designs import crossed, table_of

COLUMNS = crossed([[2, 4, 3], [5, 2, 6]])


def groups(table, name):
    levels = table.factors[name]
    return [table.values[levels.codes == code] for code in range(len(levels.names))]


def test_tukey_of_one_factor_is_that_of_scipy():
    table = table_of(COLUMNS, metric="y", factors="b")
    terms = terms_of(table, [])
    found = tukey(table, terms, "b", fit(table, terms))
    reference = stats.tukey_hsd(*groups(table, "b"))
    bounds = reference.confidence_interval(0.95)
    places = [(0, 1), (0, 2), (1, 2)]
    assert [one["levels"] for one in found] == [[f"b{i}", f"b{j}"] for i, j in places]
    for one, place in zip(found, places, strict=True):
        assert one["difference"] == pytest.approx(reference.statistic[place])
        assert one["p"] == pytest.approx(reference.pvalue[place], abs=1e-6)
        expected = [bounds.low[place], bounds.high[place]]
        assert one["interval"] == pytest.approx(expected, abs=1e-6)


def test_tukey_beside_other_terms_takes_their_effects_off():
    """With two levels it is the t test of the coefficient: q = sqrt(2) |t|."""
    table = table_of(COLUMNS, metric="y", factors="a,b", blocks="k")
    terms = terms_of(table, [])
    (found,) = tukey(table, terms, "a", fit(table, [*terms, *block_terms(table)]))
    reference = smf.ols("y ~ C(a) + C(b) + C(k)", pd.DataFrame(COLUMNS)).fit()
    assert found["difference"] == pytest.approx(-reference.params["C(a)[T.a1]"])
    assert found["p"] == pytest.approx(reference.pvalues["C(a)[T.a1]"], abs=1e-6)
    low, high = reference.conf_int().loc["C(a)[T.a1]"]
    assert found["interval"] == pytest.approx([-high, -low], rel=1e-5)


def test_levels_that_share_no_block_are_not_compared():
    columns = {
        "method": ["a", "b", "a", "b", "c", "d", "c", "d"],
        "set": ["one"] * 4 + ["two"] * 4,
        "fd": [1.0, 2.0, 1.5, 2.25, 7.0, 8.0, 7.5, 8.5],
    }
    table = table_of(columns, metric="fd", factors="method", blocks="set")
    terms = [factor_term(table, "method")]
    found = tukey(table, terms, "method", fit(table, [*terms, *block_terms(table)]))
    assert [one["levels"] for one in found] == [["a", "b"], ["c", "d"]]


def test_levene_shapiro_and_kruskal_are_those_of_scipy():
    table = table_of(COLUMNS, metric="y", factors="b")
    residuals = fit(table, terms_of(table, [])).residuals
    expected = stats.levene(*groups(table, "b"), center="median")
    found = levene(residuals, table.factors["b"]) or {}
    assert (found["statistic"], found["p"]) == pytest.approx(tuple(expected))
    found = shapiro(residuals) or {}
    assert (found["statistic"], found["p"]) == pytest.approx(tuple(stats.shapiro(residuals)))
    found = kruskal(table, "b")
    expected = stats.kruskal(*groups(table, "b"))
    assert (found["statistic"], found["p"], found["df"]) == pytest.approx((*expected, 2))


def test_kruskal_takes_the_blocks_off_first():
    """A difference of 1 between methods, beside one of 100 between sets."""
    columns = {
        "method": ["a", "b"] * 6,
        "set": [str(number // 2) for number in range(12)],
        "fd": [100 * (number // 2) + number % 2 + 0.01 * number for number in range(12)],
    }
    without = table_of(columns, metric="fd", factors="method")
    beside = table_of(columns, metric="fd", factors="method", blocks="set")
    assert kruskal(without, "method")["p"] > 0.5
    assert kruskal(beside, "method")["p"] < 0.01


def test_what_cannot_be_tested_is_none():
    constant = table_of({"a": list("ppqq"), "y": [1.0, 1.0, 2.0, 2.0]}, metric="y", factors="a")
    assert levene(np.zeros(4), constant.factors["a"]) is None
    assert shapiro(np.zeros(4)) is None
    assert shapiro(np.arange(2.0)) is None


def test_holm_is_that_of_statsmodels():
    p = [0.04, 0.001, 0.03, 0.8, 0.03]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []
