"""Sizes of images in pixels: the one form in which they travel, and which of them a base takes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from smidgen.errors import UsageError

EXPECTED = "a number of pixels, or WIDTHxHEIGHT such as 768x512"
MOST_SIDE = 2**16
MOST_ASPECT = 4  # of buckets: a longer picture is cropped to this
MOST_STEPS = 16  # along the side of a square: finer ones would make buckets of few images
LEAST_SHARE = 0.75  # of the whole area that a bucket has
WRITTEN = re.compile(r"(-?\d{1,9})(?:x(-?\d{1,9}))?")


class ImageSize(NamedTuple):
    """Pixels from left to right and from top to bottom; reads `512` where both are the same, else
    `768x512`.
    """

    width: int
    height: int

    @classmethod
    def of(cls, value: ImageSize | int | str) -> ImageSize:
        """The size that an integer (a square), text or a size means.

        Raises: UsageError if it is nothing of these, or has a side that no image has.
        """
        if not isinstance(value, ImageSize):
            found = None if isinstance(value, bool) else WRITTEN.fullmatch(str(value).strip())
            if found is None:
                raise UsageError(f"image_size is {str(value)[:40]!r}; expected {EXPECTED}")
            width = int(found[1])
            value = cls(width, int(found[2] or width))
        if not 1 <= min(value) <= max(value) <= MOST_SIDE:
            raise UsageError(f"image_size is {value}; expected sides of 1 to {MOST_SIDE:,} pixels")
        return value

    @property
    def plain(self) -> int | str:
        """As recipes and records have it: an integer of a square, else text."""
        return self.width if self.width == self.height else f"{self.width}x{self.height}"

    @property
    def area(self) -> int:
        """Pixels in all."""
        return self.width * self.height

    def __str__(self) -> str:
        return str(self.plain)


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Which sides of images a base takes: multiples of `multiple` up to `most` (None: any). Those
    of buckets go in steps of `step`.
    """

    multiple: int
    step: int
    most: int | None = None

    def check(self, size: ImageSize, base: str) -> None:
        """Raises: UsageError for a size that the base of this name does not take, with the nearest
        that it does.
        """
        nearest = ImageSize(*(self._nearest(side) for side in size))
        if nearest == size:
            return
        most = "" if self.most is None else f" up to {self.most}"
        raise UsageError(
            f'image size {size} does not fit base "{base}", which takes sides that are a multiple '
            f"of {self.multiple}{most}; give {nearest}"
        )

    def _nearest(self, side: int) -> int:
        most = MOST_SIDE if self.most is None else self.most
        nearest = (side + self.multiple // 2) // self.multiple * self.multiple
        return min(max(nearest, self.multiple), most // self.multiple * self.multiple)


def buckets_of(size: ImageSize, sides: Sides) -> tuple[ImageSize, ...]:
    """The sizes to which pictures of any shape are brought, `size` first: all whose sides go in the
    base's steps, or in as many of them as make a sixteenth of a side, and whose area is that of
    `size` or up to a quarter less.
    """
    step = sides.step * math.ceil(math.sqrt(size.area) / MOST_STEPS / sides.step)
    found = {size}
    for one in range(step, math.isqrt(size.area * MOST_ASPECT) + 1, step):
        other = size.area // one // step * step
        least, most = sorted((one, other))
        fits = sides.most is None or most <= sides.most
        if fits and most <= MOST_ASPECT * least and one * other >= LEAST_SHARE * size.area:
            found |= {ImageSize(one, other), ImageSize(other, one)}
    return (size, *sorted(found - {size}))


def nearest(width: int, height: int, sizes: Sequence[ImageSize]) -> ImageSize:
    """That of several sizes whose shape is nearest to a picture's, by the ratio of the two, the
    largest of equally near ones.
    """
    if len(sizes) == 1:
        return sizes[0]

    def distance(size: ImageSize) -> tuple[float, int]:
        return abs(math.log(width * size.height / (height * size.width))), -size.area

    return min(sizes, key=distance)
