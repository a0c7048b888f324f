"""The Frechet distance without most of its bias, and how sure it is. N images, D dimensions.

Leaving tenths of the images out tells both, where drawing images again with replacement (bootstrap)
would not: equal images make the covariance of so many images smaller, and the distance larger.
"""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.evaluation.metrics import GaussianSum, frechet_distance, splits_of
from smidgen.evaluation.table import Found


def frechet_jackknife(
    features: Float[Tensor, "N D"],
    mean: Float[Tensor, "D"],
    covariance: Float[Tensor, "D D"],
    *,
    num_groups: int,
) -> Found:
    """The distance for endlessly many images, with its standard error: the delete-a-group jackknife
    (Quenouille 1956; Efron & Tibshirani 1993, chapter 11), which takes the bias of order 1 / N away
    (Chong & Forsyth 2020, arXiv 1911.07023, section 3, fit a line in 1 / N for that).

    With d of all images and d_g without group g, of G: the mean of G d - (G - 1) d_g, and the
    standard error of that mean. Images i and i + 1 are in groups that are unrelated to i mod G, as
    classes take turns.
    """
    group_of = splits_of(0, len(features)) % num_groups
    groups = [summed(features[group_of == group]) for group in range(num_groups)]
    whole = _distance(groups, mean, covariance)
    pseudo = torch.tensor(
        [
            num_groups * whole
            - (num_groups - 1) * _distance([*groups[:g], *groups[g + 1 :]], mean, covariance)
            for g in range(num_groups)
        ],
        dtype=torch.float64,
    )
    error = pseudo.std(correction=1) / num_groups**0.5
    return Found(
        value={"mean": float(pseudo.mean()), "std": float(error)},
        notes=["± is the standard error"],
    )


def summed(features: Float[Tensor, "N D"]) -> GaussianSum:
    """The sums of N feature vectors."""
    found = GaussianSum(features.shape[1])
    found.update(features)
    return found


def _distance(groups: list[GaussianSum], mean: Tensor, covariance: Tensor) -> float:
    def joined(total: GaussianSum, part: GaussianSum) -> GaussianSum:
        total.merge(part)
        return total

    found = reduce(joined, groups, GaussianSum(len(mean))).result()
    return frechet_distance(found.mean, found.covariance, mean, covariance)
