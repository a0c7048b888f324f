"""Metrics of nearest neighbours: precision and recall, density and coverage; and copies.

M real and N generated vectors, D feature dimensions. Exact, in float64 and block by block: memory
is a few blocks of distances whatever M and N.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from smidgen.evaluation.metrics import exact_device
from smidgen.evaluation.table import Found

ROUNDING = 1e-12  # of a squared distance, relative to the squared lengths: above what D sums make
SAME = 1e-9  # of a squared distance, as above: what one file read twice makes in float32
TIE = 1e-9  # squared distances whose ratio is this near to one are equal


def prdc(
    fake: Float[Tensor, "N D"],
    real: Float[Tensor, "M D"],
    device: torch.device | str = "cpu",
    *,
    k_precision: int = 3,
    k_density: int = 5,
    block: int = 2048,
) -> Found:
    """Precision and recall, Kynkaanniemi et al. 2019 (arXiv 1904.06991), equations 1 and 2; density
    and coverage, Naeem et al. 2020 (arXiv 2002.09797), equations 5 and 7.

    The ball of a vector reaches to its k-th neighbour in its own set, itself not counted. As in
    both authors' code, balls include their surface for precision and recall and exclude it for
    density and coverage. Density may be above one. All four move with M and N: compare them at
    equal numbers only. A real vector with `k_density` copies has a ball without inside, which
    density and coverage never find anything in: a note counts these.

    Raises: ValueError if a set has no k-th neighbour: at most `k_precision` vectors in one of them,
        or at most `k_density` real ones.
    """
    needed = {"real": max(k_precision, k_density), "generated": k_precision}
    for (what, k), vectors in zip(needed.items(), (real, fake), strict=True):
        if len(vectors) <= k:
            raise ValueError(f"{len(vectors)} {what} vectors have no neighbour number {k}")
    place = exact_device(device)
    centre = real.mean(dim=0, dtype=torch.float64).to(place)
    sets = [_Blocks(vectors, centre, block) for vectors in (real, fake)]
    near_real = _neighbour_distances(sets[0], needed["real"])
    ball_fake = _neighbour_distances(sets[1], k_precision)[:, -1]
    ball_real, inner_real = near_real[:, k_precision - 1], near_real[:, k_density - 1]
    hit, counted = (torch.zeros(len(fake), dtype=torch.int64, device=place) for _ in range(2))
    recalled, covered = (torch.zeros(len(real), dtype=torch.bool, device=place) for _ in range(2))
    for rows, some_real in sets[0]:
        for columns, some_fake in sets[1]:
            distances = _squared_distances(some_real, some_fake)
            hit[columns] += (distances <= _outer(ball_real[rows])[:, None]).sum(dim=0)
            recalled[rows] |= (distances <= _outer(ball_fake[columns])).any(dim=1)
            inside = distances < _inner(inner_real[rows])[:, None]
            counted[columns] += inside.sum(dim=0)
            covered[rows] |= inside.any(dim=1)
    numbers = {
        "precision": float((hit > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(counted.double().mean() / k_density),
        "coverage": float(covered.double().mean()),
    }
    copied = int((inner_real == 0).sum())
    words = (
        f"{copied} of {len(real)} of the reference have {k_density} copies: nothing is near them"
    )
    return Found(value=numbers, notes=[words] if copied else [])


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The vectors less `centre`, in blocks of float64 on its device, each with its rows."""

    vectors: Tensor
    centre: Tensor
    block: int

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        for first in range(0, len(self.vectors), self.block):
            part = self.vectors[first : first + self.block]
            rows = slice(first, first + len(part))
            yield rows, part.to(self.centre.device).double() - self.centre


def _squared_distances(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> Float[Tensor, "A B"]:
    """|x - y|^2 of all pairs; vectors that only rounding keeps apart are at distance zero."""
    norms = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    squares = norms - 2 * (x @ y.T)
    return squares.masked_fill_(squares < ROUNDING * norms, 0)


def _neighbour_distances(blocks: _Blocks, k: int) -> Float[Tensor, "M k"]:
    """Squared distances from each vector to its k nearest others, ascending."""
    centre = blocks.centre
    nearest = torch.full(
        (len(blocks.vectors), k), torch.inf, dtype=torch.float64, device=centre.device
    )
    for rows, x in blocks:
        for columns, y in blocks:
            if columns.start < rows.start:
                continue  # the mirror image of a pair of blocks that is done
            distances = _squared_distances(x, y)
            if columns == rows:
                distances.fill_diagonal_(torch.inf)
            else:
                nearest[columns] = _smallest(nearest[columns], distances.T, k)
            nearest[rows] = _smallest(nearest[rows], distances, k)
    return nearest


def _smallest(
    found: Float[Tensor, "A k"], distances: Float[Tensor, "A B"], k: int
) -> Float[Tensor, "A k"]:
    return torch.cat([found, distances], dim=1).topk(k, dim=1, largest=False).values


def _outer(squares: Float[Tensor, "A"]) -> Float[Tensor, "A"]:
    """Bounds that let ties in, so that copies of a neighbour are on the surface in any blocks."""
    return squares * (1 + TIE)


def _inner(squares: Float[Tensor, "A"]) -> Float[Tensor, "A"]:
    """Bounds that keep ties out."""
    return squares * (1 - TIE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """How near different pictures of a set are to each other: `distance` is the quantile of the
    distances (not squared) from each to the nearest other one. About `by_chance` of further such
    pictures would be nearer to the set than that.
    """

    real: Float[Tensor, "M D"]
    distance: float
    by_chance: float
    device: torch.device
    block: int

    def nearest(
        self, fake: Float[Tensor, "N D"]
    ) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"], Bool[Tensor, "N"]]:
        """Of each vector the distance to the nearest real one, its index, and whether it is nearer
        than the scale: too near to be another picture.
        """
        centre = self.real.mean(dim=0, dtype=torch.float64).to(self.device)
        sets = [_Blocks(vectors, centre, self.block) for vectors in (fake, self.real)]
        squares, places = _nearest(*sets)
        return squares.sqrt().cpu(), places.cpu(), (squares < self.distance**2 * (1 - TIE)).cpu()


def scale_of(
    real: Float[Tensor, "M D"],
    device: torch.device | str = "cpu",
    *,
    quantile: float = 0.01,
    block: int = 2048,
) -> Scale:
    """The scale on which a generated picture is a copy of one of the real ones: distances between
    real pictures, left out one by one, as the data-copying test of Meehan et al. 2020 (arXiv
    2004.05675) has them of held-out ones. Copies among the real ones are passed over.

    With k = quantile x M, rounded down and 1 at least, the scale is the k-th smallest distance;
    (k + 1) / (M + 1) of further pictures would be nearer, exactly so for k = 1, where it is the
    probability that one of M + 1 pictures is of the nearest pair.

    Raises: ValueError if not two of the vectors differ.
    """
    place = exact_device(device)
    centre = real.mean(dim=0, dtype=torch.float64).to(place)
    blocks = _Blocks(real, centre, block)
    squares = _nearest(blocks, blocks, different=True)[0]
    k = max(1, int(quantile * len(real)))
    distance = float(squares.sort().values[k - 1].sqrt())
    if not math.isfinite(distance):
        raise ValueError(f"{len(real)} real vectors, of which not two differ")
    return Scale(
        real=real,
        distance=distance,
        by_chance=min(1.0, (k + 1) / (len(real) + 1)),
        device=place,
        block=block,
    )


def _nearest(
    rows: _Blocks, columns: _Blocks, *, different: bool = False
) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"]]:
    """The squared distance from each row to the nearest column, and its index; with `different` to
    the nearest one that is no copy of it.
    """
    count, place = len(rows.vectors), rows.centre.device
    nearest = torch.full((count,), torch.inf, dtype=torch.float64, device=place)
    found = torch.zeros(count, dtype=torch.int64, device=place)
    for these, x in rows:
        for those, y in columns:
            squares = _squared_distances(x, y)
            if different:
                norms = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
                squares.masked_fill_(squares <= SAME * norms, torch.inf)
            least, where = squares.min(dim=1)
            better = least < nearest[these]
            nearest[these] = torch.where(better, least, nearest[these])
            found[these] = torch.where(better, where + those.start, found[these])
    return nearest, found
