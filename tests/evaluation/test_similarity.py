"""Cosines of sets against the mean over all pairs, of pairs against scipy."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cosine

from smidgen.evaluation.similarity import (
    directions,
    mean_cosine,
    mean_of_pairs,
    mean_of_texts,
    mean_spread,
    paired_cosine,
)


def features(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 5, generator=generator, dtype=torch.float64) + 0.7


def test_mean_cosine_is_the_mean_over_all_pairs():
    generated, reference = features(7, seed=1), 9 * features(11, seed=2)
    pairs = [1 - cosine(a, b) for a in generated for b in reference]
    found = mean_cosine(directions(generated).mean(0), directions(reference).mean(0))
    assert found == pytest.approx(np.mean(pairs), rel=1e-12)


def test_paired_cosine_is_that_of_each_image_with_its_own_text():
    images, texts = features(6, seed=3), -2 * features(6, seed=4)
    expected = [1 - cosine(image, text) for image, text in zip(images, texts, strict=True)]
    assert paired_cosine(images, texts).tolist() == pytest.approx(expected, rel=1e-12)
    assert mean_of_texts(paired_cosine(images, texts)) == pytest.approx(
        np.mean(expected), rel=1e-12
    )


def test_a_vector_of_zeros_has_cosine_zero():
    zeros = torch.zeros(2, 5)
    assert paired_cosine(zeros, features(2, seed=5)).tolist() == [0, 0]


def test_the_mean_of_pairs_leaves_each_vector_with_itself_out():
    real = features(5, seed=6)
    pairs = [1 - cosine(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j]
    assert mean_of_pairs(real) == pytest.approx(np.mean(pairs), rel=1e-12)
    assert mean_of_pairs(real[:1]) is None


def test_the_spread_is_that_within_groups_alone():
    found, groups = features(7, seed=7), torch.tensor([0, 1, 0, 1, 2, 0, 1])
    of_groups = []
    for group in (0, 1):  # the third has one vector only
        (places,) = np.nonzero((groups == group).numpy())
        of_groups.append(
            np.mean([cosine(found[i], found[j]) for i in places for j in places if i != j])
        )
    assert mean_spread(found, groups) == pytest.approx(np.mean(of_groups), rel=1e-12)
    assert mean_spread(found[:1], groups[:1]) is None
