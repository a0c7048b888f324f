"""Metrics as pure functions of numbers: Gaussian statistics, Frechet distance, class agreement.

N images, D feature dimensions. No images, no networks and no files here. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
