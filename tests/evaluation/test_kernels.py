"""KID and CMMD against their sums written out pair by pair."""

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from smidgen.evaluation.kernels import cmmd, kid


def features(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def unbiased_by_pairs(x: torch.Tensor, y: torch.Tensor) -> float:
    """The U-statistic with one Python number for every pair."""

    def kernel(a, b):
        return (np.dot(a, b) / len(a) + 1) ** 3

    x, y = x.double().numpy(), y.double().numpy()
    within_x = np.mean([kernel(a, b) for a, b in itertools.permutations(x, 2)])
    within_y = np.mean([kernel(a, b) for a, b in itertools.permutations(y, 2)])
    return float(within_x + within_y - 2 * np.mean([kernel(a, b) for a in x for b in y]))


def test_kid_of_whole_sets_is_the_sum_over_pairs():
    x, y = features(17, 5, seed=1), features(17, 5, seed=2) + 0.3
    found = kid(x, y, num_subsets=3)
    assert found.value["mean"] == pytest.approx(unbiased_by_pairs(x, y), rel=1e-9)
    assert found.value["std"] < 1e-12  # every subset is the whole set


def test_kid_draws_every_subset_of_both_sets_as_often():
    x, y = features(4, 3, seed=3), features(5, 3, seed=4) - 0.5
    possible = [
        unbiased_by_pairs(x[list(rows)], y[list(others)])
        for rows in itertools.combinations(range(4), 3)
        for others in itertools.combinations(range(5), 3)
    ]
    found = kid(x, y, num_subsets=1, subset_size=3).value
    assert np.abs(np.array(possible) - found["mean"]).min() < 1e-9
    assert found["std"] == 0
    many = kid(x, y, num_subsets=3000, subset_size=3).value
    assert many["mean"] == pytest.approx(np.mean(possible), abs=5 * np.std(possible) / 3000**0.5)
    assert many["std"] == pytest.approx(np.std(possible), rel=0.1)


def test_kid_depends_on_the_seed_alone_and_refuses_subsets_of_one():
    x, y = features(40, 4, seed=5), features(30, 4, seed=6)
    once = kid(x, y, num_subsets=5, subset_size=10, seed=1)
    assert kid(x, y, num_subsets=5, subset_size=10, seed=1) == once
    assert kid(x, y, num_subsets=5, subset_size=10, seed=2) != once
    with pytest.raises(ValueError, match="two at least"):
        kid(x[:1], y)
    with pytest.raises(ValueError, match="0 subsets"):
        kid(x, y, num_subsets=0)


def test_kid_says_how_large_its_subsets_really_were():
    x, y = features(40, 4, seed=5), features(30, 4, seed=6)
    found = kid(x, y, num_subsets=2, subset_size=35)
    assert (dict(found.settings), found.notes) == ({"subset_size": 30}, ())
    found = kid(y, x, num_subsets=2, subset_size=35)
    assert found.settings == {"subset_size": 30}
    assert found.notes == ("every subset is all 30 images, so that ± is too small",)


@pytest.mark.parametrize("block", [1, 4, 2048])
def test_cmmd_is_the_published_estimate_on_normalised_vectors(block):
    x, y = features(9, 6, seed=7), 5 * features(13, 6, seed=8) + 1
    units = [part.double().numpy() for part in (x, y)]
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in units]

    def kernel(a, b):
        return np.exp(-cdist(a, b, "sqeuclidean") / (2 * 10**2)).mean()

    a, b = units
    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert cmmd(x, y, block=block) == pytest.approx(expected, rel=1e-8)


def test_cmmd_of_equal_sets_is_zero_and_grows_with_a_shift():
    x, shift = features(50, 8, seed=9), torch.eye(8)[0]
    assert cmmd(x, x.flip(0), block=7) == pytest.approx(0, abs=1e-10)
    assert 0 < cmmd(x, x + 0.5 * shift) < cmmd(x, x + shift)
    with pytest.raises(ValueError, match="empty set"):
        cmmd(x, x[:0])
