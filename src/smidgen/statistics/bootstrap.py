"""Methods compared over the runs that they share: pairs of one data set and one seed. The sets are
fixed, the seeds are what chance has drawn, so seeds are resampled within each set (stratified
bootstrap, Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from smidgen.errors import SmidgenError, UsageError, closest
from smidgen.statistics.comparisons import holm
from smidgen.statistics.effects import CONFIDENCE, Interval
from smidgen.statistics.permutation import NUM_PERMUTATIONS, SEED

NUM_RESAMPLES = 10_000
MOST_EXACT = 13  # pairs whose signs are all tried, 8,192 ways

Run = tuple[str, str]  # set, seed
Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The first method against the second over the runs of both.

    `difference` is the mean over sets of the mean over seeds, first less second. `improvement` is
    the probability that a run of the first is better than one of the second on the same set, ties
    counting half. `p` is by exchanging the two within pairs, and `p_holm` holds for all comparisons
    made together. `least_p` is the smallest p that so few pairs can have.
    """

    methods: tuple[str, str]
    num_pairs: int
    left_out: tuple[str, ...]
    """Sets of which both have fewer than two seeds."""
    difference: float
    difference_interval: Interval
    improvement: float
    improvement_interval: Interval
    p: float
    p_holm: float
    least_p: float
    verdict: Verdict
    """About the first; a difference only where the interval excludes zero and p_holm is small."""


def compare_methods(
    scores: Mapping[str, Mapping[Run, float]],
    *,
    higher_is_better: bool,
    reference: str | None = None,
) -> list[Comparison]:
    """Every method against the reference (None: every two) by the score of each (set, seed).

    Raises: UsageError for fewer than two methods, or an unknown reference; SmidgenError for a score
        that is not finite, or two methods without a set of which both have two seeds.
    """
    if len(scores) < 2:
        raise UsageError(f"{len(scores)} method to compare; give two or more")
    if reference is not None and reference not in scores:
        raise UsageError(f'no method "{reference}" to compare with{closest(reference, scores)}')
    for method, runs in scores.items():
        for run, score in runs.items():
            if not np.isfinite(score):
                raise SmidgenError(
                    f"{method} has the score {score} on {run[0]} with seed {run[1]}; expected a "
                    "finite number: leave the run out or measure it again"
                )
    pairs = list(combinations(scores, 2))
    if reference is not None:
        pairs = [(method, reference) for method in scores if method != reference]
    sign = 1 if higher_is_better else -1
    found = [_compared(pair, scores[pair[0]], scores[pair[1]], sign) for pair in pairs]
    corrected = zip(found, holm([one.p for one in found]), strict=True)
    return [replace(one, p_holm=p, verdict=_verdict(one, p, sign)) for one, p in corrected]


def mean_with_interval(runs: Mapping[Run, float]) -> tuple[float, Interval | None]:
    """The mean over sets of the mean over seeds, and its interval; None without two seeds of every
    set.
    """
    by_set: dict[str, list[float]] = {}
    for (name, _), score in runs.items():
        by_set.setdefault(name, []).append(score)
    strata = [np.array(scores) for scores in by_set.values()]
    found = float(np.mean([one.mean() for one in strata]))
    if min(map(len, strata)) < 2:
        return found, None
    generator = np.random.default_rng(SEED)
    resampled = [_resampled(generator, len(one)) @ one for one in strata]
    return found, _percentiles(np.mean(resampled, axis=0))


def _compared(
    methods: tuple[str, str], first: Mapping[Run, float], second: Mapping[Run, float], sign: int
) -> Comparison:
    """The comparison before its correction; `sign` is -1 where lower scores are better."""
    strata = _strata(first, second)
    left_out = [name for name, pairs in strata.items() if len(pairs) < 2]
    kept = [np.array(pairs) for pairs in strata.values() if len(pairs) >= 2]
    if not kept:
        raise SmidgenError(
            f"{methods[0]} and {methods[1]} have no set of which both have two seeds or more; run "
            "each on the same sets with the same seeds"
        )
    generator = np.random.default_rng(SEED)
    differences = [pairs[:, 0] - pairs[:, 1] for pairs in kept]
    wins = [_wins(sign * pairs) for pairs in kept]
    means, chances = np.zeros(NUM_RESAMPLES), np.zeros(NUM_RESAMPLES)
    for one, won in zip(differences, wins, strict=True):
        weights = _resampled(generator, len(one))
        means += weights @ one / len(kept)
        chances += np.sum(weights @ won * weights, axis=1) / len(kept)
    num_pairs = sum(map(len, differences))
    return Comparison(
        methods=methods,
        num_pairs=num_pairs,
        left_out=tuple(left_out),
        difference=float(np.mean([one.mean() for one in differences])),
        difference_interval=_percentiles(means),
        improvement=float(np.mean([won.mean() for won in wins])),
        improvement_interval=_percentiles(chances),
        p=exchange_p(differences),
        p_holm=1.0,
        least_p=2.0 ** (1 - num_pairs),
        verdict="no difference shown",
    )


def _strata(
    first: Mapping[Run, float], second: Mapping[Run, float]
) -> dict[str, list[tuple[float, float]]]:
    """The scores of both with one seed, by set."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in first:
        pairs = found.setdefault(run[0], [])
        pairs += [(first[run], second[run])] if run in second else []
    return found


def _wins(pairs: np.ndarray) -> np.ndarray:
    """(n, 2) -> (n, n): 1 where the first with seed i is above the second with seed j, 1/2 where
    they are equal (Mann and Whitney).
    """
    gaps = pairs[:, None, 0] - pairs[None, :, 1]
    return (gaps > 0) + 0.5 * (gaps == 0)


def _resampled(generator: np.random.Generator, count: int) -> np.ndarray:
    """(NUM_RESAMPLES, count): the weights of a set's seeds in each resample.

    One less is drawn than there are: the variance of the mean is then that of the seeds, without
    bias, where as many would have (count - 1) / count of it, two thirds for three seeds (McCarthy
    and Snowden 1985).
    """
    drawn = generator.multinomial(count - 1, np.full(count, 1 / count), size=NUM_RESAMPLES)
    return drawn / (count - 1)


def _percentiles(resamples: np.ndarray) -> Interval:
    low, high = np.quantile(resamples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def exchange_p(differences: list[np.ndarray]) -> float:
    """The chance of a mean difference as far from zero, if the two of each pair were exchanged at
    random (Fisher 1935); all ways of doing so are tried where they are few.
    """
    # of the mean over sets of the mean over seeds
    shares = np.concatenate([one / len(one) for one in differences])
    count = len(shares)
    if count <= MOST_EXACT:
        bits = np.arange(2**count)[:, None] >> np.arange(count)
        signs = 1 - 2 * (bits & 1)
    else:
        generator = np.random.default_rng(SEED)
        signs = generator.choice([-1, 1], size=(NUM_PERMUTATIONS, count))
        signs = np.vstack([np.ones(count, dtype=int), signs])  # what was seen is one of them
    seen = abs(shares.sum())
    return float(np.mean(np.abs(signs @ shares) >= seen * (1 - 1e-9)))


def _verdict(one: Comparison, p_holm: float, sign: int) -> Verdict:
    low, high = one.difference_interval
    if low <= 0 <= high or p_holm >= 1 - CONFIDENCE:
        return "no difference shown"
    return "better" if sign * one.difference > 0 else "worse"
