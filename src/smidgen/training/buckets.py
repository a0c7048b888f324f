"""Buckets: pictures of about one area that keep their shape, a batch of one shape at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from smidgen.errors import UsageError
from smidgen.sizes import ImageSize, buckets_of
from smidgen.training.randomness import Shuffle

if TYPE_CHECKING:
    from smidgen.models.base import Base
    from smidgen.training.config import RunConfig
    from smidgen.training.described import Described

# in an identity
BUCKETS, NO_BUCKETS = "the buckets", "none"


def sizes_of(base: Base | Described, config: RunConfig) -> tuple[ImageSize, ...]:
    """The sizes to which images are brought, that of the base first and, without buckets, alone.
    `config` is resolved. None is known of a base whose size is not.

    Raises: UsageError for buckets that are asked for and cannot be.
    """
    why = None
    if base.family.encode is None:
        why = f'base "{base.name}" knows classes, and one size of images'
    elif config.training.prior_weight:
        why = f"task {config.task} pairs each image with one of its class, and both have one size"
    if why is not None and config.buckets:
        raise UsageError(f"buckets cannot be: {why}; leave --buckets out")
    if base.image_size is None or base.sides is None:
        return ()
    if why is not None or config.buckets is False:
        return (base.image_size,)
    return buckets_of(base.image_size, base.sides)


def identity_of_buckets(image_sizes: Sequence[ImageSize], image_size: ImageSize) -> str:
    """What tells whether images are in the same buckets as before; those of the training size alone
    are as if there were none.
    """
    if set(image_sizes) <= {image_size}:
        return NO_BUCKETS
    return hashlib.sha256(" ".join(map(str, image_sizes)).encode()).hexdigest()


class BucketOrder:
    """Endless passes over images in buckets: what is taken at once is of one bucket.

    The next bucket is the one through which the fewest passes were made, the largest of several; a
    small one is gone through more than once to fill what is taken. So every image is seen equally
    often, none ahead of another by more than the passes of one batch.
    """

    def __init__(self, buckets: Sequence[Tensor], seed: int) -> None:
        """The images (n,) of each bucket; of one alone the order is that of `Shuffle`."""
        self._shuffles = [
            Shuffle(images, seed, "order" if number == 0 else f"order {number}")
            for number, images in enumerate(buckets)
        ]

    @property
    def epoch(self) -> int:
        """The passes that were begun through every bucket, counted from 0."""
        return min(shuffle.epoch for shuffle in self._shuffles)

    @property
    def places(self) -> list[tuple[int, int]]:
        """Epoch and position of each bucket."""
        return [(shuffle.epoch, shuffle.position) for shuffle in self._shuffles]

    def seek(self, places: Sequence[tuple[int, int]]) -> None:
        """Go to where `places` were. Raises: ValueError for those of other buckets."""
        for shuffle, (epoch, position) in zip(self._shuffles, places, strict=True):
            shuffle.seek(epoch, position)

    def take(self, count: int) -> Tensor:
        """The next `count` images, of one bucket."""
        return min(self._shuffles, key=lambda one: (one.passes, -len(one))).take(count)
