"""Tests that ask how often chance alone would do as well: no normal distribution is needed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from smidgen.statistics.linear import Space

NUM_PERMUTATIONS = 9999
FEWEST_PERMUTATIONS = 999  # of tables with many rows
MOST_NUMBERS = 2**24  # permuted in all, beyond FEWEST_PERMUTATIONS: some seconds
MOST_AT_ONCE = 2**20  # numbers
SEED = 0  # the same table gives the same numbers


def permutation_p(
    values: np.ndarray, groups: np.ndarray, without: Space, beside: Space, everything: Space
) -> float | None:
    """The chance of an F as large as that of the values, by permuting within groups what the model
    without the effect leaves (Freedman and Lane 1983); exact where that is only the groups' means.

    `without` and `beside` are the models without and with the effect, `everything` that whose error
    is the denominator. None where no group has two rows.
    """
    if np.bincount(groups).max() < 2:
        return None
    residuals = without.residuals(values)

    def ratios(several: np.ndarray) -> np.ndarray:
        """(B, N) -> (B,): F up to a constant."""
        held = [np.sum((several @ one.basis) ** 2, axis=1) for one in (without, beside, everything)]
        whole = np.sum(several**2, axis=1)
        error = np.maximum(whole - held[2], np.finfo(float).eps * whole)  # some order may fit all
        return (held[1] - held[0]) / error

    seen = ratios(residuals[None])[0]
    least = seen - 1e-9 * abs(seen)  # rounding makes no difference between equal ones
    count = min(NUM_PERMUTATIONS, max(FEWEST_PERMUTATIONS, MOST_NUMBERS // len(groups)))
    reached = sum(
        int(np.sum(ratios(residuals[orders]) >= least)) for orders in permutations(groups, count)
    )
    return (reached + 1) / (count + 1)


def permutations(groups: np.ndarray, num_orders: int) -> Iterator[np.ndarray]:
    """(B, N) at a time, `num_orders` in all: random orders of the rows within each group."""
    generator = np.random.default_rng(SEED)
    rows = np.argsort(groups, kind="stable")
    at_once = max(1, MOST_AT_ONCE // len(groups))
    for start in range(0, num_orders, at_once):
        count = min(at_once, num_orders - start)
        orders = np.empty((count, len(groups)), dtype=int)
        # sorted by group, and by chance within it
        orders[:, rows] = np.argsort(groups + generator.random((count, len(groups))), axis=1)
        yield orders
