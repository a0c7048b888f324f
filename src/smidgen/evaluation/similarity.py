"""Cosine similarities of embeddings: CLIP-I, DINO-I, CLIP-T, and of the vectors of one set.

N vectors, D dimensions; everything is float64. A vector of zeros has the direction zero, so that
its cosine with anything is 0.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn


def directions(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The vectors, divided by their lengths."""
    return nn.functional.normalize(features.double(), dim=1, eps=1e-30)


def mean_cosine(direction1: Float[Tensor, "D"], direction2: Float[Tensor, "D"]) -> float:
    """Mean cosine over all pairs of two sets, from their mean directions: CLIP-I, DINO-I.

    The mean over all generated x reference pairs (Ruiz et al. 2023, arXiv 2208.12242, section 4.2)
    is the dot product of the two means, so that no features need to be kept.
    """
    return float(direction1.double() @ direction2.double())


def paired_cosine(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
    """The cosine of each vector with the other's of its place; of images with their texts the mean
    is CLIP-T (arXiv 2208.12242, 4.2), neither scaled nor clamped at zero, unlike CLIPScore.
    """
    return (directions(first) * directions(second)).sum(dim=1)


def mean_of_texts(cosines: Float[Tensor, "N"]) -> float:
    """CLIP-T of the cosine of each image with its own text."""
    return float(cosines.mean())


def mean_of_pairs(features: Float[Tensor, "N D"]) -> float | None:
    """Mean cosine over all pairs of two different vectors of one set; None of fewer than two.

    Of real pictures of one subject this is the CLIP-I of each against the others: what is left
    where the subject is met.
    """
    count = len(features)
    if count < 2:
        return None
    units = directions(features)
    alike = units.square().sum()  # of each with itself: 1, or 0 for a vector of zeros
    return float((units.sum(dim=0).square().sum() - alike) / (count * (count - 1)))


def mean_spread(features: Float[Tensor, "N D"], groups: Int[Tensor, "N"]) -> float | None:
    """1 - the mean cosine of two different vectors of a group, the mean over groups of two or more;
    None without one.
    """
    cosines = [mean_of_pairs(features[groups == group]) for group in groups.unique()]
    found = [1 - cosine for cosine in cosines if cosine is not None]
    return sum(found) / len(found) if found else None
