"""Methods compared over pairs of set and seed."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from smidgen.errors import SmidgenError, UsageError
from smidgen.statistics import bootstrap
from smidgen.statistics.bootstrap import Run, compare_methods, exchange_p

SETS, SEEDS = ("cats", "food", "birds", "cars"), ("0", "1", "2")


def scores(
    effects, noise=0.1, sets: Sequence[str] = SETS, seeds: Sequence[str] = SEEDS, seed=0
) -> dict[str, dict[Run, float]]:
    """Runs whose sets and seeds have large effects of their own, shared by all methods."""
    generator = np.random.default_rng(seed)
    runs = list(itertools.product(sets, seeds))
    shared = {run: 10 * generator.standard_normal() for run in runs}
    return {
        method: {run: shared[run] + effect + noise * generator.standard_normal() for run in runs}
        for method, effect in effects.items()
    }


def test_pairing_takes_off_what_sets_and_seeds_share():
    (found,) = compare_methods(scores({"difffit": 0.5, "lora": 0.0}), higher_is_better=True)
    assert (found.methods, found.num_pairs, found.left_out) == (("difffit", "lora"), 12, ())
    low, high = found.difference_interval
    assert low < 0.5 < high
    assert high - low < 0.3  # the runs themselves spread over tens
    assert found.verdict == "better"
    (less,) = compare_methods(scores({"difffit": 0.5, "lora": 0.0}), higher_is_better=False)
    assert less.verdict == "worse"
    assert less.difference == found.difference
    assert less.improvement == pytest.approx(1 - found.improvement)


def test_each_set_counts_alike_whatever_its_number_of_seeds():
    first = {("a", "0"): 1.0, ("a", "1"): 3.0, ("b", "0"): 5.0, ("b", "1"): 5.0, ("b", "2"): 8.0}
    second = dict.fromkeys(first, 0.0)
    (found,) = compare_methods({"x": first, "y": second}, higher_is_better=True)
    assert found.difference == pytest.approx(((1 + 3) / 2 + (5 + 5 + 8) / 3) / 2)


def test_improvement_is_mann_and_whitneys_of_each_set():
    runs = scores({"x": 0.0, "y": 0.0}, noise=10, sets=("a", "b"), seeds=tuple("012345"))
    (found,) = compare_methods(runs, higher_is_better=True)
    shares = []
    for one in ("a", "b"):
        x, y = ([runs[method][one, seed] for seed in "012345"] for method in "xy")
        shares.append(stats.mannwhitneyu(x, y).statistic / 36)
    assert found.improvement == pytest.approx(np.mean(shares))
    low, high = found.improvement_interval
    assert 0 <= low <= found.improvement <= high <= 1


def test_resamples_spread_as_the_mean_does():
    """Their variance is s^2 / n of each set, not the (n - 1) / n of it that n draws would give."""
    runs = scores({"x": 0.0, "y": 0.0}, noise=1)
    (found,) = compare_methods(runs, higher_is_better=True)
    differences = [[runs["x"][one, s] - runs["y"][one, s] for s in SEEDS] for one in SETS]
    expected = np.sqrt(np.mean([np.var(each, ddof=1) / 3 for each in differences]) / len(SETS))
    low, high = found.difference_interval
    assert (high - low) / (2 * 1.96) == pytest.approx(expected, rel=0.1)


def test_p_is_that_of_all_exchanges():
    differences = [np.array([0.3, -0.1, 0.4]), np.array([0.2, 0.5])]
    expected = stats.permutation_test(
        (np.concatenate([differences[0] / 3, differences[1] / 2]),),
        lambda one: abs(one.sum()),
        permutation_type="samples",
        alternative="greater",
    ).pvalue
    assert exchange_p(differences) == pytest.approx(expected)
    assert exchange_p([np.array([1.0, 2.0, 3.0])]) == 2 / 8
    many = exchange_p([np.full(10, 1.0), np.full(10, 1.0)])
    assert 0 < many <= 2 / bootstrap.NUM_PERMUTATIONS


def test_three_seeds_of_one_set_show_no_difference_however_large_it_is():
    runs = scores({"x": 100.0, "y": 0.0}, sets=("cats",))
    (found,) = compare_methods(runs, higher_is_better=True)
    assert found.difference_interval[0] > 0
    assert found.p == found.least_p == 0.25
    assert found.verdict == "no difference shown"


def test_many_comparisons_are_corrected_together():
    runs = scores(dict.fromkeys("abcde", 0.0), noise=1)
    found = compare_methods(runs, higher_is_better=True)
    assert len(found) == 10
    assert all(one.p_holm >= one.p for one in found)
    smallest = min(found, key=lambda one: one.p)
    assert smallest.p_holm == pytest.approx(min(1, 10 * smallest.p))
    against = compare_methods(runs, higher_is_better=True, reference="c")
    assert [one.methods for one in against] == [(name, "c") for name in "abde"]


def test_nothing_is_found_more_often_than_promised_where_nothing_is(monkeypatch):
    monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 500)
    num_tables = 200
    shown = 0
    for seed in range(num_tables):
        runs = scores({"x": 0.0, "y": 0.0}, noise=1, seed=seed)
        (found,) = compare_methods(runs, higher_is_better=True)
        shown += found.verdict != "no difference shown"
    assert shown / num_tables < 0.05 + 3 * np.sqrt(0.05 * 0.95 / num_tables)


def test_runs_that_one_method_lacks_are_left_out_for_both():
    runs = scores({"x": 0.5, "y": 0.0})
    for seed in ("0", "1"):
        del runs["x"]["cars", seed]
    del runs["y"]["birds", "2"]
    (found,) = compare_methods(runs, higher_is_better=True)
    assert (found.num_pairs, found.left_out) == (3 + 3 + 2, ("cars",))


def test_what_cannot_be_compared_is_one_line():
    runs = scores({"x": 0.0, "y": 0.0})
    with pytest.raises(UsageError, match="1 method to compare"):
        compare_methods({"x": runs["x"]}, higher_is_better=True)
    with pytest.raises(UsageError, match=r'no method "z".*choose from: x, y'):
        compare_methods(runs, higher_is_better=True, reference="z")
    one_seed = {
        name: {run: y for run, y in each.items() if run[1] == "0"} for name, each in runs.items()
    }
    with pytest.raises(SmidgenError, match="x and y have no set of which both have two seeds"):
        compare_methods(one_seed, higher_is_better=True)
    runs["y"]["food", "1"] = float("nan")
    with pytest.raises(SmidgenError, match="y has the score nan on food with seed 1"):
        compare_methods(runs, higher_is_better=True)
