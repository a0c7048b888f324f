"""Cosine similarities of embeddings: CLIP-I, DINO-I and CLIP-T.

N vectors, D dimensions; everything is float64. A vector of zeros has the direction zero, so that
its cosine with anything is 0.
"""

from __future__ import annotations

from jaxtyping import Float
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


def paired_cosine(images: Float[Tensor, "N D"], texts: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
    """The cosine of each image with its own text; their mean is CLIP-T (arXiv 2208.12242, 4.2).

    Neither scaled nor clamped at zero, unlike CLIPScore.
    """
    return (directions(images) * directions(texts)).sum(dim=1)


def mean_of_texts(cosines: Float[Tensor, "N"]) -> float:
    """CLIP-T of the cosine of each image with its own text."""
    return float(cosines.mean())
