"""Metrics as pure functions: Frechet distance, inception score, class agreement.

N images, D feature dimensions, K classes. No images, no networks and no files here; everything is
float64. What each metric of an evaluation needs is in table.py. Kernel distances are in kernels.py,
neighbour metrics in neighbours.py, cosines in similarity.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from smidgen.evaluation.table import Found

NUM_SPLITS = 10  # of the inception score


def exact_device(device: torch.device | str) -> torch.device:
    """The device if it computes in float64, else the CPU."""
    wanted = torch.device(device)
    return torch.device("cpu") if wanted.type == "mps" else wanted


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Mean and covariance (divided by N - 1) of `count` feature vectors."""

    mean: Float[Tensor, "D"]
    covariance: Float[Tensor, "D D"]
    count: int


class GaussianSum:
    """Mean and scatter of a stream of features (Chan, Golub & LeVeque 1983, equation 2.1).

    The result does not depend on how the stream is cut into batches, rounding aside; sums over
    parts of a set merge to the sum over the set.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Float[Tensor, "N D"]) -> None:
        """Add N feature vectors."""
        if len(features) == 0:
            return
        part = GaussianSum(len(self.mean))
        values = features.detach().to("cpu", torch.float64)
        part.count = len(values)
        part.mean = values.mean(dim=0)
        centred = values - part.mean
        part.scatter = centred.T @ centred
        self.merge(part)

    def merge(self, other: GaussianSum) -> None:
        """Add all feature vectors of `other`, which is left as it is."""
        if other.count == 0:
            return
        total = self.count + other.count
        step = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter += torch.outer(step, step) * (self.count * other.count / total)
        self.mean += step * (other.count / total)
        self.count = total

    def result(self) -> Gaussian:
        """The Gaussian so far; a single vector has covariance zero.

        Raises: ValueError if there was no feature vector.
        """
        if self.count == 0:
            raise ValueError("no feature vectors: a Gaussian needs at least one")
        covariance = self.scatter / max(self.count - 1, 1)
        return Gaussian(mean=self.mean.clone(), covariance=covariance, count=self.count)


def frechet_distance(
    mean1: Float[Tensor, "D"],
    covariance1: Float[Tensor, "D D"],
    mean2: Float[Tensor, "D"],
    covariance2: Float[Tensor, "D D"],
) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), Heusel et al. 2017 (arXiv 1706.08500), eq. 6.

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2): exact for
    singular covariances too (fewer images than dimensions), where a matrix square root fails.
    """
    root1, root2 = _symmetric_factor(covariance1), _symmetric_factor(covariance2)
    overlap = torch.linalg.svdvals(root1.T @ root2).sum()
    difference = (mean1.double() - mean2.double()).square().sum()
    traces = covariance1.double().trace() + covariance2.double().trace()
    return max(0.0, float(difference + traces - 2 * overlap))


def _symmetric_factor(covariance: Float[Tensor, "D D"]) -> Float[Tensor, "D D"]:
    """A with A A^T = C; eigenvalues that rounding made negative count as zero."""
    values, vectors = torch.linalg.eigh(covariance.double())
    return vectors * values.clamp_min(0).sqrt()


def class_agreement(predicted: Int[Tensor, "N"], intended: Int[Tensor, "N"]) -> float:
    """The share of images that a classifier takes for the class they were meant to show.

    Raises: ValueError if there are no images.
    """
    if len(intended) == 0:
        raise ValueError("no images: agreement needs at least one")
    return float((predicted == intended).double().mean())


def agreement(
    predicted: Int[Tensor, "N"],
    intended: Int[Tensor, "N"],
    reference: tuple[Int[Tensor, "M"], Int[Tensor, "M"]] | None,
    head: str,
    names: Sequence[str],
) -> Found:
    """Class agreement with its baselines, chance and the agreement on real images, and by class."""
    by_class = {}
    for index in intended.unique().tolist():
        of_class = intended == index
        by_class[names[index]] = class_agreement(predicted[of_class], intended[of_class])
    return Found(
        value=class_agreement(predicted, intended),
        baselines={
            "class_agreement_by_chance": 1 / len(names),
            "class_agreement_of_reference": reference and class_agreement(*reference),
        },
        facts={"head": head, "agreement_by_class": dict(sorted(by_class.items()))},
    )


class ProbabilitySums:
    """What the inception score needs of a stream of logits: a sum of probabilities per split.

    The split of an image depends on its index alone: each ten indices from a multiple of ten on
    are spread over the ten splits in a fixed pseudo-random order. Splits of consecutive images, or
    of every tenth, would hold a part of the classes wherever images come sorted by class, or with
    the classes in turns.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = torch.zeros(NUM_SPLITS, dtype=torch.float64)
        self.probabilities = torch.zeros(NUM_SPLITS, num_classes, dtype=torch.float64)
        self.negentropies = torch.zeros(NUM_SPLITS, dtype=torch.float64)  # sums of p log p

    def update(self, first_index: int, logits: Float[Tensor, "N K"]) -> None:
        """Add the logits of images `first_index`, `first_index` + 1, ..."""
        scores = logits.detach().cpu().double()
        split = splits_of(first_index, len(scores))
        logs = scores.log_softmax(dim=1)
        probabilities = logs.exp()
        self.counts += torch.bincount(split, minlength=NUM_SPLITS)
        self.probabilities.index_add_(0, split, probabilities)
        self.negentropies.index_add_(0, split, (probabilities * logs).sum(dim=1))

    def merge(self, other: ProbabilitySums) -> None:
        """Add all images of `other`, which is left as it is."""
        self.counts += other.counts
        self.probabilities += other.probabilities
        self.negentropies += other.negentropies


def splits_of(first_index: int, count: int) -> Int[Tensor, "{count}"]:
    """The split of each of `count` images from `first_index` on: a permutation in every ten."""
    start = first_index - first_index % NUM_SPLITS
    tens = -(-(first_index + count - start) // NUM_SPLITS)
    keys = _mixed(np.arange(start, start + tens * NUM_SPLITS, dtype=np.uint64))
    ranks = keys.reshape(tens, NUM_SPLITS).argsort(axis=1).ravel()
    return torch.from_numpy(ranks[first_index - start :][:count].astype(np.int64))


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): neighbours become unrelated."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def inception_score(sums: ProbabilitySums) -> dict[str, float]:
    """exp of the mean of KL(p(y|x) || p(y)) over images x, Salimans et al. 2016 (arXiv 1606.03498).

    Between 1 and K. `mean` and `std` are over ten splits, each with its own p(y), as published
    scores are; splits without an image are left out. `whole` is of all images as one split.

    Raises: ValueError if there are no images.
    """
    if not sums.counts.any():
        raise ValueError("no images: an inception score needs at least one")
    used = sums.counts > 0
    parts = _scores(sums.counts[used], sums.probabilities[used], sums.negentropies[used])
    whole = _scores(
        sums.counts.sum(0, keepdim=True),
        sums.probabilities.sum(0, keepdim=True),
        sums.negentropies.sum(0, keepdim=True),
    )
    mean, std = float(parts.mean()), float(parts.std(correction=0))
    return {"mean": mean, "std": std, "whole": float(whole)}


def _scores(
    counts: Float[Tensor, "S"],
    probabilities: Float[Tensor, "S K"],
    negentropies: Float[Tensor, "S"],
) -> Float[Tensor, "S"]:
    """The mean KL is the mean of sum p log p less the same sum of the mean probabilities."""
    marginal = probabilities / counts[:, None]
    return (negentropies / counts - marginal.xlogy(marginal).sum(dim=1)).exp()
