"""Kernel distances between feature sets: KID and CMMD, both squared maximum mean discrepancies.

N and M vectors, D feature dimensions. Everything is computed in float64, block by block; which
features belong to which published number is said in metrics.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.evaluation.metrics import exact_device
from smidgen.evaluation.similarity import directions
from smidgen.evaluation.table import Found

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0


def kid(
    x: Float[Tensor, "N D"],
    y: Float[Tensor, "M D"],
    device: torch.device | str = "cpu",
    *,
    num_subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> Found:
    """Kernel distance: unbiased MMD^2 with (x.y/D + 1)^3, Binkowski et al. 2018 (arXiv 1801.01401).

    Mean and standard deviation (divided by `num_subsets`) over random subsets of both sets, drawn
    without replacement; `seed` is fixed, so that the same features give the same number. A subset
    has at most as many vectors as the smaller set. Not multiplied by 1000. May be negative: its
    expectation is zero for equal distributions.

    Raises: ValueError if a subset would have fewer than two vectors, or there are no subsets.
    """
    size = min(subset_size, len(x), len(y))
    if size < 2 or num_subsets < 1:
        raise ValueError(f"{num_subsets} subsets of {size} vectors: KID needs one, of two at least")
    place = exact_device(device)
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(num_subsets):
        part_x = x[torch.randperm(len(x), generator=generator)[:size]].to(place).double()
        part_y = y[torch.randperm(len(y), generator=generator)[:size]].to(place).double()
        distances.append(_unbiased_distance(part_x, part_y))
    found = torch.tensor(distances, dtype=torch.float64)
    words = f"every subset is all {size} images, so that ± is too small"
    return Found(
        value={"mean": float(found.mean()), "std": float(found.std(correction=0))},
        settings={"subset_size": size},
        notes=(words,) if size == len(x) else (),
    )


def _unbiased_distance(x: Float[Tensor, "S D"], y: Float[Tensor, "S D"]) -> float:
    """MMD^2 without the pairs of a vector with itself (Gretton et al. 2012, equation 3)."""
    size = len(x)
    within = (_polynomial(x, x), _polynomial(y, y))
    pairs = sum(float(kernel.sum() - kernel.trace()) for kernel in within)
    return pairs / (size * (size - 1)) - 2 * float(_polynomial(x, y).mean())


def _polynomial(x: Float[Tensor, "S D"], y: Float[Tensor, "S D"]) -> Float[Tensor, "S S"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def cmmd(
    x: Float[Tensor, "N D"],
    y: Float[Tensor, "M D"],
    device: torch.device | str = "cpu",
    *,
    block: int = 2048,
) -> float:
    """CLIP's MMD^2 x 1000, Jayasumana et al. 2024 (arXiv 2401.09603); published on CLIP L/14.

    Gaussian kernel of width 10 on L2-normalised embeddings, which are normalised here. The biased
    estimate (Gretton et al. 2012, equation 5), as the authors publish it: a vector's pair with
    itself counts, and equal sets are at zero.

    Raises: ValueError if a set is empty.
    """
    if len(x) == 0 or len(y) == 0:
        raise ValueError("an empty set of embeddings: CMMD needs one vector in each")
    place = exact_device(device)
    between = _mean_gaussian(x, y, block, place)
    within = _mean_gaussian(x, x, block, place) + _mean_gaussian(y, y, block, place)
    return CMMD_SCALE * (within - 2 * between)


def _mean_gaussian(
    x: Float[Tensor, "N D"], y: Float[Tensor, "M D"], block: int, device: torch.device
) -> float:
    """The mean of k(x, y) - 1 over all pairs, k = exp(-|x - y|^2 / (2 sigma^2)).

    On unit vectors k is between 0.98 and 1; without the 1, which cancels in MMD^2, no digit is
    lost.
    """
    total = 0.0
    for part_x in x.split(block):
        unit_x = directions(part_x.to(device))
        for part_y in y.split(block):
            unit_y = directions(part_y.to(device))
            norms = unit_x.square().sum(1)[:, None] + unit_y.square().sum(1)
            squares = norms - 2 * (unit_x @ unit_y.T)
            total += float(torch.expm1(squares / (-2 * CMMD_SIGMA**2)).sum())
    return total / (len(x) * len(y))
