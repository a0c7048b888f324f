"""Precision, recall, density and coverage against their equations, one ball at a time."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from smidgen.evaluation.neighbours import prdc


def points(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def by_definition(real: torch.Tensor, fake: torch.Tensor, k_precision=3, k_density=5) -> dict:
    """Every ball by itself; squared distances, which are exact for small whole numbers."""
    real, fake = real.double().numpy(), fake.double().numpy()

    def radii(vectors, k):
        own = cdist(vectors, vectors, "sqeuclidean")
        return np.array([sorted(np.delete(row, i))[k - 1] for i, row in enumerate(own)])

    between = cdist(real, fake, "sqeuclidean")
    ball_real, ball_fake = radii(real, k_precision), radii(fake, k_precision)
    inner = radii(real, k_density)
    pairs = [(i, j) for i in range(len(real)) for j in range(len(fake))]
    precise = {j for i, j in pairs if between[i, j] <= ball_real[i]}
    recalled = {i for i, j in pairs if between[i, j] <= ball_fake[j]}
    inside = [(i, j) for i, j in pairs if between[i, j] < inner[i]]
    return {
        "precision": len(precise) / len(fake),
        "recall": len(recalled) / len(real),
        "density": len(inside) / (k_density * len(fake)),
        "coverage": len({i for i, _ in inside}) / len(real),
    }


def same(found: dict, expected: dict) -> bool:
    return found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("block", [3, 16, 2048])
@pytest.mark.parametrize(("k_precision", "k_density"), [(3, 5), (4, 2)])
def test_all_four_are_their_equations(block, k_precision, k_density):
    real, fake = points(60, 6, seed=1), 0.8 * points(45, 6, seed=2) + 0.7
    expected = by_definition(real, fake, k_precision, k_density)
    assert all(value > 0 for value in expected.values())
    assert max(expected[name] for name in ("precision", "recall", "coverage")) < 1
    found = prdc(fake, real, k_precision=k_precision, k_density=k_density, block=block)
    assert same(found.value, expected)
    assert found.notes == []


@pytest.mark.parametrize("block", [13, 64])
@pytest.mark.parametrize("copies", [1, 6])  # six of each: every ball is a point
def test_ties_and_copies_count_as_they_should_far_from_zero_too(block, copies):
    generator = torch.Generator().manual_seed(3)  # 16 places for 80 vectors
    real = torch.randint(0, 4, (40, 2), generator=generator).repeat(copies, 1)
    fake = torch.randint(0, 5, (40, 2), generator=generator).repeat(copies, 1)
    # turned into 30 dimensions and moved, so that equal distances differ in their last digits
    turn = torch.linalg.qr(points(30, 30, seed=4).double()).Q[:2]
    found = prdc(fake.double() @ turn + 1000, real.double() @ turn + 1000, block=block)
    assert same(found.value, by_definition(real, fake))


@pytest.mark.parametrize("block", [7, 100])
def test_a_set_against_itself_has_all_of_them_one(block):
    real = points(50, 300, seed=4) + 3
    assert prdc(real.clone(), real, block=block).value == pytest.approx(
        {"precision": 1, "recall": 1, "density": 1, "coverage": 1}, rel=1e-12
    )


def test_copies_of_a_picture_that_leave_density_and_coverage_nothing_are_counted():
    real = torch.cat([points(10, 4, seed=7), points(1, 4, seed=8).repeat(6, 1)])
    found = prdc(real.clone(), real)
    assert found.value["coverage"] == pytest.approx(10 / 16)
    assert found.notes == ["6 of 16 of the reference have 5 copies: nothing is near them"]
    assert prdc(real[:-1], real[:-1]).notes == [], "five pictures have four copies each"


def test_sets_apart_have_none_and_a_narrow_one_is_precise_but_covers_little():
    real = points(80, 4, seed=5)
    assert set(prdc(real + 100, real).value.values()) == {0.0}
    narrow = prdc(0.01 * points(80, 4, seed=6), real).value
    assert narrow["precision"] == 1
    assert narrow["density"] > 1
    assert narrow["recall"] < 0.2
    assert narrow["coverage"] < 0.5


def test_sets_without_enough_neighbours_are_refused():
    real = points(6, 2, seed=7)
    assert 0 <= prdc(real[:4], real).value["recall"] <= 1
    with pytest.raises(ValueError, match="5 real vectors have no neighbour number 5"):
        prdc(real, real[:5])
    with pytest.raises(ValueError, match="3 generated vectors have no neighbour number 3"):
        prdc(real[:3], real)
