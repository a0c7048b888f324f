"""Metrics against scipy, closed forms and the definition."""

import numpy as np
import pytest
import scipy.linalg
import torch

from smidgen.evaluation.metrics import GaussianSum, class_agreement, frechet_distance


def features(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing + seed


def gaussian(values: torch.Tensor):
    total = GaussianSum(values.shape[1])
    total.update(values)
    return total.result()


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    a, b = gaussian(first), gaussian(second)
    return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


@pytest.mark.parametrize("dim", [1, 5, 40])
def test_distance_equals_the_formula_with_scipys_matrix_root(dim):
    first, second = features(300, dim, seed=1), features(200, dim, seed=2)
    mean1, mean2 = first.numpy().mean(0), second.numpy().mean(0)
    c1 = np.atleast_2d(np.cov(first.numpy(), rowvar=False))
    c2 = np.atleast_2d(np.cov(second.numpy(), rowvar=False))
    root = scipy.linalg.sqrtm(c1 @ c2).real
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(c1 + c2 - 2 * root)
    assert distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_distance_of_diagonal_gaussians_has_its_closed_form():
    mean1, mean2 = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    std1, std2 = torch.tensor([1.0, 2.0, 0.1]), torch.tensor([3.0, 0.0, 0.4])
    expected = (mean1 - mean2).square().sum() + (std1 - std2).square().sum()
    measured = frechet_distance(mean1, std1.square().diag(), mean2, std2.square().diag())
    assert measured == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("count", [500, 7])
def test_identical_sets_have_distance_zero_within_rounding(count):
    values = features(count, 20, seed=3)
    scale = float(gaussian(values).covariance.trace())
    assert distance(values, values.clone()) <= 1e-12 * scale


def test_distance_of_fewer_images_than_dimensions_equals_that_in_their_subspace():
    flat1, flat2 = features(400, 3, seed=4), features(400, 3, seed=5)
    turn = torch.linalg.qr(features(30, 30, seed=6)).Q[:3]
    assert distance(flat1 @ turn, flat2 @ turn) == pytest.approx(distance(flat1, flat2), rel=1e-9)


def test_statistics_are_numpys_however_the_stream_is_cut():
    values = features(101, 8, seed=7) + 1e4
    whole = gaussian(values)
    streamed, merged = GaussianSum(8), GaussianSum(8)
    for part in values.split(9):
        streamed.update(part)
    for chunk in values.tensor_split([1, 40]):
        part = GaussianSum(8)
        part.update(chunk)
        merged.merge(part)
    merged.merge(GaussianSum(8))
    expected = np.cov(values.numpy(), rowvar=False)
    for statistics in (whole, streamed.result(), merged.result()):
        assert statistics.count == 101
        np.testing.assert_allclose(statistics.mean, values.numpy().mean(0), rtol=1e-13)
        np.testing.assert_allclose(statistics.covariance, expected, rtol=1e-9, atol=1e-9)


def test_one_vector_has_covariance_zero_and_none_is_refused():
    assert gaussian(features(1, 4, seed=8)).covariance.abs().max() == 0
    with pytest.raises(ValueError, match="no feature vectors"):
        GaussianSum(4).result()


def test_agreement_is_the_share_of_equal_classes():
    assert class_agreement(torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 2, 0])) == 0.75
    with pytest.raises(ValueError, match="no images"):
        class_agreement(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))
