"""What all metrics need of a stream of features, collected in one pass without the images.

B images of a batch, N of all, D feature dimensions. Every batch carries the index of its first
image, so that the result is in order of index whichever process saw which batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.evaluation.metrics import Gaussian, GaussianSum, ProbabilitySums
from smidgen.evaluation.similarity import directions, paired_cosine
from smidgen.evaluation.table import METRICS, Needs, needing

CHUNK = 4096  # rows that are taken to float64 at a time
# what takes the features themselves
KEEPING: tuple[Needs, ...] = ("features", "features-to-gaussian", "samples", "others")


@dataclass(frozen=True, kw_only=True, eq=False)
class Accumulated:
    """An image set as metrics see it, everything in order of sample index.

    `features` (N, D) float32 where a metric needs them, else None; `predictions` the class index
    that each head sees in each image, (N); `intended` what each image was meant to show, None if
    any is unknown; `mean_direction` (D) the mean of the normalised features; `probabilities` those
    of each head of which a metric needs them; `text_cosines` (N) of each image with its text, None
    if any has none.
    """

    gaussian: Gaussian
    features: Tensor | None
    predictions: dict[str, Tensor]
    intended: tuple[str, ...] | None
    mean_direction: Tensor
    probabilities: dict[str, ProbabilitySums]
    text_cosines: Tensor | None

    @property
    def count(self) -> int:
        """The number of images."""
        return self.gaussian.count

    def part(self, places: slice) -> Accumulated:
        """The images at these places alone, as if no others had been there; without probabilities.
        The features must have been kept.
        """
        assert self.features is not None, "a part is summed up again from its features"
        features, texts = self.features[places], self.text_cosines
        gaussian, direction_sum = _sums(features)
        return Accumulated(
            gaussian=gaussian.result(),
            features=features,
            predictions={head: seen[places] for head, seen in self.predictions.items()},
            intended=None if self.intended is None else self.intended[places],
            mean_direction=direction_sum / gaussian.count,
            probabilities={},
            text_cosines=None if texts is None else texts[places],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What is kept of each image of a batch; `features` only where a metric needs them."""

    first_index: int
    count: int
    features: Tensor | None
    predictions: dict[str, Tensor]
    intended: tuple[str, ...] | None
    text_cosines: Tensor | None


class Accumulator:
    """Collects the features of a stream of images for the given metrics.

    Features are kept only if one of `metrics` needs them all. Then mean and covariance are computed
    from them at the end, bit for bit the same however the stream was cut and shared out; without
    them they are running sums, the same to rounding.
    """

    def __init__(self, dim: int, heads: Iterable[str], metrics: Collection[str]) -> None:
        """Raises: ValueError for an unknown metric, or one whose head is not among `heads`."""
        self.dim = dim
        self.heads = tuple(heads)
        self.metrics = frozenset(metrics)
        if unknown := sorted(self.metrics - METRICS.keys()):
            raise ValueError(f"unknown metrics: {', '.join(unknown)}")
        for name in sorted(self.metrics):
            head = METRICS[name].head
            if head is not None and head not in self.heads:
                raise ValueError(f'{name} needs the head "{head}"; there are: {self.heads}')
        self.keeps_features = any(needing(self.metrics, what) for what in KEEPING)
        self.batches: list[Batch] = []
        self.gaussian = GaussianSum(dim)
        self.direction_sum = torch.zeros(dim, dtype=torch.float64)
        self.probabilities: dict[str, ProbabilitySums] = {}

    @property
    def count(self) -> int:
        """The number of images so far."""
        return sum(batch.count for batch in self.batches)

    def update(
        self,
        features: Tensor,
        logits: Mapping[str, Tensor],
        *,
        first_index: int | None = None,
        intended: Sequence[str] | None = None,
        texts: Tensor | None = None,
    ) -> None:
        """Add B images from `first_index` on: features (B, D), logits (B, K) of each head, the
        classes they were meant to show, embeddings (B, D) of their texts.

        Without `first_index` they follow the last batch.

        Raises: SmidgenError if a feature is not finite, ValueError if the sizes do not fit.
        """
        count = len(features)
        if first_index is None:
            last = self.batches[-1] if self.batches else None
            first_index = last.first_index + last.count if last else 0
        self._check(features, logits, first_index, intended, texts)
        if count == 0:
            return
        values = features.detach().to("cpu", torch.float32, copy=True)
        if not self.keeps_features:
            self.gaussian.update(values)
            self.direction_sum += directions(values).sum(dim=0)
        for head in {METRICS[name].head or "" for name in needing(self.metrics, "probabilities")}:
            self._probabilities(head, logits[head].shape[1]).update(first_index, logits[head])
        cosines = None if texts is None else paired_cosine(values, texts.detach().cpu())
        self.batches.append(
            Batch(
                first_index=first_index,
                count=count,
                features=values if self.keeps_features else None,
                predictions={head: logits[head].argmax(dim=1).cpu() for head in self.heads},
                intended=None if intended is None else tuple(intended),
                text_cosines=cosines,
            )
        )

    def _check(
        self,
        features: Tensor,
        logits: Mapping[str, Tensor],
        first_index: int,
        intended: Sequence[str] | None,
        texts: Tensor | None,
    ) -> None:
        count = len(features)
        if features.shape != (count, self.dim):
            raise ValueError(f"features of shape {tuple(features.shape)} for {self.dim} dimensions")
        others = [logits[head] for head in self.heads if head in logits]
        others += [part for part in (intended, texts) if part is not None]
        if len(others) < len(self.heads) or any(len(part) != count for part in others):
            raise ValueError(f"logits of every head, classes and texts must be {count} each")
        if not torch.isfinite(features).all():
            raise SmidgenError(
                f"features of images {first_index} to {first_index + count - 1} are not finite; "
                "look at these images, and at the weights of the feature extractor"
            )

    def _probabilities(self, head: str, num_classes: int) -> ProbabilitySums:
        if head not in self.probabilities:
            self.probabilities[head] = ProbabilitySums(num_classes)
        return self.probabilities[head]

    def merge(self, other: Accumulator) -> None:
        """Add all images of `other`, which is left as it is.

        Raises: ValueError if it collects other things.
        """
        mine, theirs = (set_up(part) for part in (self, other))
        if mine != theirs:
            raise ValueError(f"{theirs} cannot be merged into {mine}")
        self.batches.extend(other.batches)
        self.gaussian.merge(other.gaussian)
        self.direction_sum += other.direction_sum
        for head, sums in other.probabilities.items():
            self._probabilities(head, sums.probabilities.shape[1]).merge(sums)

    def result(self) -> Accumulated:
        """The set so far, in order of sample index.

        Raises: ValueError if there is no image, or an index came twice.
        """
        batches = sorted(self.batches, key=lambda batch: batch.first_index)
        if not batches:
            raise ValueError("no images: nothing was accumulated")
        for before, after in itertools.pairwise(batches):
            if before.first_index + before.count > after.first_index:
                raise ValueError(f"image {after.first_index} was accumulated twice")
        features = _joined([batch.features for batch in batches])
        gaussian, direction_sum = self.gaussian, self.direction_sum
        if features is not None:
            gaussian, direction_sum = _sums(features)
        names = [batch.intended for batch in batches if batch.intended is not None]
        known = len(names) == len(batches)
        return Accumulated(
            gaussian=gaussian.result(),
            features=features,
            predictions={
                head: torch.cat([batch.predictions[head] for batch in batches])
                for head in self.heads
            },
            intended=tuple(itertools.chain(*names)) if known else None,
            mean_direction=direction_sum / gaussian.count,
            probabilities=self.probabilities,
            text_cosines=_joined([batch.text_cosines for batch in batches]),
        )


def set_up(accumulator: Accumulator) -> tuple[int, tuple[str, ...], list[str]]:
    """What an accumulator collects: dimensions, heads, metrics."""
    return accumulator.dim, accumulator.heads, sorted(accumulator.metrics)


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if len(present) == len(parts) else None


def _sums(features: Tensor) -> tuple[GaussianSum, Tensor]:
    """Mean, scatter and the sum of the directions of (N, D) features, in chunks of fixed size."""
    gaussian = GaussianSum(features.shape[1])
    direction_sum = torch.zeros(features.shape[1], dtype=torch.float64)
    for chunk in features.split(CHUNK):
        gaussian.update(chunk)
        direction_sum += directions(chunk).sum(dim=0)
    return gaussian, direction_sum
