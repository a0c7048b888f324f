"""The Frechet distance for endless images against its definition, and what it is for."""

import numpy as np
import pytest
import torch

from smidgen.evaluation.jackknife import frechet_jackknife
from smidgen.evaluation.metrics import frechet_distance, splits_of
from smidgen.evaluation.table import METRICS

DIM, GROUPS = 6, METRICS["fd_infinity"].settings["num_groups"]


def features(count, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((count, DIM), generator=generator) + shift).float()


def standard():
    return torch.zeros(DIM, dtype=torch.float64), torch.eye(DIM, dtype=torch.float64)


def distance(rows, mean, covariance):
    values = rows.numpy().astype(np.float64)
    of = torch.from_numpy(values.mean(0)), torch.from_numpy(np.cov(values, rowvar=False))
    return frechet_distance(*of, mean, covariance)


def test_it_is_the_mean_of_pseudo_values_with_its_standard_error():
    rows, known = features(80, seed=1), standard()
    found = frechet_jackknife(rows, *known, num_groups=GROUPS).value
    group = splits_of(0, len(rows))
    pseudo = np.array(
        [
            GROUPS * distance(rows, *known) - (GROUPS - 1) * distance(rows[group != g], *known)
            for g in range(GROUPS)
        ]
    )
    assert found["mean"] == pytest.approx(pseudo.mean(), abs=1e-9)
    assert found["std"] == pytest.approx(pseudo.std(ddof=1) / np.sqrt(GROUPS), abs=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_few_images_of_a_known_distribution_are_as_far_as_the_distribution(shift):
    """Of 60 sets of 150 images: the distance is too large by its bias, this is right in the mean
    to a tenth of that, and its standard errors are those that the sets show.
    """
    true, known = DIM * shift**2, standard()
    sets = [features(150, seed, shift) for seed in range(60)]
    plain = np.array([distance(rows, *known) for rows in sets])
    found = [frechet_jackknife(rows, *known, num_groups=GROUPS).value for rows in sets]
    means = np.array([one["mean"] for one in found])
    bias = plain.mean() - true
    assert bias > 0.05
    assert abs(means.mean() - true) < 0.1 * bias + 2 * means.std() / np.sqrt(len(sets))
    if shift:  # without, the distance is at its least, where its errors are not normal
        said = np.mean([one["std"] for one in found])
        assert said == pytest.approx(means.std(), rel=0.35)


def test_classes_in_turns_do_not_fall_into_groups_of_their_own():
    places = splits_of(0, 1000).view(100, 10)
    assert all(len(set(places[:, column].tolist())) > 5 for column in range(10))
