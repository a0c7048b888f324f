"""Sizes of effects against their definitions, and their intervals against the noncentral F."""

import numpy as np
import pytest
from scipy.stats import ncf

from smidgen.statistics.effects import CONFIDENCE, Squares, effect_of, noncentrality

TAIL = (1 - CONFIDENCE) / 2
ONE_WAY = Squares(effect=30.0, df=3, residual=56.0, df_residual=28, total=86.0, rows=32)
OF_SEVERAL = Squares(effect=30.0, df=3, residual=56.0, df_residual=28, total=120.0, rows=36)


@pytest.mark.parametrize("ratio", [0.2, 1.0, 5.0, 60.0, 1e5])
def test_the_bounds_of_the_noncentrality_put_the_tails_where_they_belong(ratio):
    low, high = noncentrality(ratio, 4, 46)
    for bound, probability in ((low, 1 - TAIL), (high, TAIL)):
        if bound > 0:
            assert ncf.cdf(ratio, 4, 46, bound) == pytest.approx(probability, abs=1e-8)
        else:  # even no effect at all gives less
            assert ncf.cdf(ratio, 4, 46, 0) <= probability
    assert low <= 4 * ratio


@pytest.mark.parametrize("squares", [ONE_WAY, OF_SEVERAL])
def test_sizes_are_their_definitions(squares):
    found = effect_of(squares, None)
    error = 56 / 28
    assert (found.F, found.eta_squared) == pytest.approx((30 / 3 / error, 30 / squares.total))
    assert found.partial_eta_squared == pytest.approx(30 / 86)
    assert found.omega_squared == pytest.approx((30 - 3 * error) / (squares.total + error))
    beside = 3 * (found.F - 1)
    assert found.partial_omega_squared == pytest.approx(beside / (beside + squares.rows))


def test_of_one_factor_alone_both_forms_are_one():
    found = effect_of(ONE_WAY, None)
    assert found.omega_squared == pytest.approx(found.partial_omega_squared)
    assert found.omega_squared_interval == found.partial_omega_squared_interval


def test_the_interval_is_omega_squared_with_the_bounds_in_the_place_of_the_estimate():
    """omega squared is L / (L + N + others) with L = df (F - 1)."""
    found = effect_of(OF_SEVERAL, None)
    error = 56 / 28
    others = (120 - 30 - 56) / error - (36 - 1 - 3 - 28)
    estimate = 3 * (found.F - 1)
    assert found.omega_squared == pytest.approx(estimate / (estimate + 36 + others))
    expected = [bound / (bound + 36 + others) for bound in noncentrality(found.F, 3, 28)]
    assert found.omega_squared_interval == pytest.approx(expected)


def test_intervals_hold_the_true_share_as_often_as_they_say():
    """Four groups of eight with means of variance 0.5 beside an error of variance 1."""
    generator = np.random.default_rng(0)
    means = np.array([-1.0, -1.0, 1.0, 1.0]) * np.sqrt(0.5)
    num_hits, num_tables = 0, 200
    for _ in range(num_tables):
        groups = means[:, None] + generator.standard_normal((4, 8))
        residual = np.sum((groups - groups.mean(1, keepdims=True)) ** 2)
        total = np.sum((groups - groups.mean()) ** 2)
        squares = Squares(
            effect=total - residual, df=3, residual=residual, df_residual=28, total=total, rows=32
        )
        low, high = effect_of(squares, None).omega_squared_interval
        num_hits += low <= 0.5 / 1.5 <= high
    sd = np.sqrt(CONFIDENCE * (1 - CONFIDENCE) / num_tables)
    assert abs(num_hits / num_tables - CONFIDENCE) < 3 * sd
