"""Metrics against scipy, closed forms and the definition."""

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats
import torch

from smidgen.evaluation.metrics import (
    GaussianSum,
    ProbabilitySums,
    class_agreement,
    exact_device,
    frechet_distance,
    inception_score,
    splits_of,
)


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


def probabilities_by_index(logits: torch.Tensor, first: int = 0) -> ProbabilitySums:
    sums = ProbabilitySums(logits.shape[1])
    sums.update(first, logits)
    return sums


def score_by_definition(probabilities: np.ndarray) -> float:
    marginal = probabilities.mean(axis=0)
    divergences = [scipy.stats.entropy(row, marginal) for row in probabilities]
    return float(np.exp(np.mean(divergences)))


def test_inception_score_is_the_definition_on_each_split_and_on_all():
    logits = 3 * features(137, 6, seed=9)
    probabilities = scipy.special.softmax(logits.numpy(), axis=1)
    splits = splits_of(0, 137).numpy()
    parts = [score_by_definition(probabilities[splits == split]) for split in range(10)]
    score = inception_score(probabilities_by_index(logits))
    assert score["whole"] == pytest.approx(score_by_definition(probabilities), rel=1e-12)
    assert score["mean"] == pytest.approx(np.mean(parts), rel=1e-12)
    assert score["std"] == pytest.approx(np.std(parts), rel=1e-9)


def test_inception_score_reaches_its_bounds():
    certain = 1e3 * torch.eye(7).repeat(30, 1)  # every class as often, no doubt: K
    assert inception_score(probabilities_by_index(certain))["whole"] == pytest.approx(7, rel=1e-12)
    unsure = torch.zeros(50, 7)
    score = inception_score(probabilities_by_index(unsure))
    assert (score["mean"], score["whole"]) == pytest.approx((1, 1), rel=1e-12)
    assert score["std"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="no images"):
        inception_score(ProbabilitySums(7))


def test_inception_score_is_the_same_however_the_stream_is_cut_and_merged():
    logits = features(90, 5, seed=10)
    first, second = ProbabilitySums(5), ProbabilitySums(5)
    for number, part in enumerate(logits.split(7)):
        (first, second)[number % 2].update(7 * number, part)
    first.merge(second)
    merged, whole = inception_score(first), inception_score(probabilities_by_index(logits))
    assert merged["mean"] == pytest.approx(whole["mean"], rel=1e-12)
    assert merged["std"] == pytest.approx(whole["std"], rel=1e-9)
    assert merged["whole"] == pytest.approx(whole["whole"], rel=1e-12)


def test_splits_are_even_depend_on_the_index_alone_and_mix_classes_drawn_in_turns():
    splits = splits_of(0, 4000)
    assert all(sorted(ten.tolist()) == list(range(10)) for ten in splits.split(10))
    assert torch.equal(splits_of(1234, 77), splits[1234:1311])
    for num_classes in (10, 20, 100):
        classes = torch.arange(4000) % num_classes
        for split in range(10):
            assert len(classes[splits == split].unique()) > 0.9 * num_classes
    assert splits_of(3, 0).tolist() == []


def test_what_is_computed_in_float64_stays_off_devices_without_it():
    assert exact_device("mps") == torch.device("cpu")
    assert exact_device("cuda:1") == torch.device("cuda:1")
