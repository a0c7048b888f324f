"""Permuting: against scipy's permutation test, against all ways tried, and within blocks."""

import itertools

import numpy as np
import pytest
from scipy import stats

from smidgen.statistics.permutation import NUM_PERMUTATIONS, permutation_p, permutations
from smidgen.statistics.terms import block_terms, factor_term, span

from .designs import crossed, table_of


def p_of(table, name):
    blocks = block_terms(table)
    without, beside = span(table, blocks), span(table, [*blocks, factor_term(table, name)])
    return permutation_p(table.values, table.block_groups, without, beside, beside)


def sd(p):
    """Of a share of NUM_PERMUTATIONS."""
    return np.sqrt(p * (1 - p) / NUM_PERMUTATIONS)


def test_one_factor_is_that_of_scipy():
    table = table_of(
        crossed([[3, 3, 4]], seed=2) | {"a": list("ppqqqppqqp")}, metric="y", factors="a"
    )
    first, second = (table.values[table.factors["a"].codes == code] for code in (0, 1))
    exact = stats.permutation_test(  # of all 252 ways; the F of two groups goes with |difference|
        (first, second),
        lambda x, y: abs(x.mean() - y.mean()),
        alternative="greater",
        n_resamples=9999,
    ).pvalue
    assert p_of(table, "a") == pytest.approx(exact, abs=5 * sd(exact))


def test_within_blocks_only_exchanges_within_them_count():
    """Four blocks of two: 16 ways, of which two reach a difference of one sign everywhere."""
    columns = {
        "method": ["a", "b"] * 4,
        "set": [str(number // 2) for number in range(8)],
        "fd": [10.0, 11.0, 20.0, 21.5, 30.0, 30.5, 40.0, 42.0],
    }
    table = table_of(columns, metric="fd", factors="method", blocks="set")
    differences = np.array([1.0, 1.5, 0.5, 2.0])
    sums = [abs(np.dot(signs, differences)) for signs in itertools.product((1, -1), repeat=4)]
    exact = np.mean([one >= differences.sum() for one in sums])
    assert exact == 2 / 16
    assert p_of(table, "method") == pytest.approx(exact, abs=5 * sd(exact))


def test_every_order_keeps_the_groups_and_every_row():
    groups = np.array([0, 1, 0, 2, 1, 0])
    orders = np.concatenate(list(permutations(groups, NUM_PERMUTATIONS)))
    assert orders.shape == (NUM_PERMUTATIONS, 6)
    assert (groups[orders] == groups).all()
    assert (np.sort(orders, axis=1) == np.arange(6)).all()
    # each of the three places of group 0 has each of its rows equally often
    for place in (0, 2, 5):
        shares = np.bincount(orders[:, place], minlength=6)[[0, 2, 5]] / NUM_PERMUTATIONS
        assert shares == pytest.approx([1 / 3] * 3, abs=5 * sd(1 / 3))


def test_blocks_of_one_row_leave_nothing_to_permute():
    columns = {"a": list("pqpq"), "k": list("wxyz"), "y": [1.0, 2.0, 1.5, 2.5]}
    assert p_of(table_of(columns, metric="y", factors="a", blocks="k"), "a") is None
