"""The sheet of drawn images, each beside the training picture that is nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smidgen.data.folder import ImageFolder
from smidgen.data.images import decode, fit, strict_pillow
from smidgen.sizes import ImageSize

SHOWN = 24  # pairs
COLUMNS = 4
SMALL, LARGE = 96, 256  # pixels of a picture's longer side, at least and at most
GAP = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A drawn image, uint8 (H, W, 3), and the index of the training picture nearest to it."""

    drawn: NDArray[np.uint8]
    picture: int
    distance: float


def sheet_of(pairs: Sequence[Pair], pictures: ImageFolder) -> Image.Image:
    """The pairs row by row, the nearest first: on the left what was drawn, on the right the picture
    from the files of `pictures`, brought to its shape.
    """
    ordered = sorted(pairs, key=lambda pair: pair.distance)
    height, width, _ = ordered[0].drawn.shape
    scale = _scale(max(height, width))
    wide, high = round(width * scale), round(height * scale)
    rows = -(-len(ordered) // COLUMNS)
    sheet = Image.new(
        "RGB",
        (COLUMNS * (2 * wide + GAP) + GAP, rows * (high + GAP) + GAP),
        "white",
    )
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    for place, pair in enumerate(ordered):
        row, column = divmod(place, COLUMNS)
        left, top = GAP + column * (2 * wide + GAP), GAP + row * (high + GAP)
        known = _picture(pictures, pair.picture, ImageSize(width, height))
        for image in (Image.fromarray(pair.drawn), known):
            sheet.paste(image.resize((wide, high), how), (left, top))
            left += wide
    return sheet


def _scale(side: int) -> float:
    """Small pictures are enlarged by a whole number, so that their pixels stay squares."""
    return -(-SMALL // side) if side < SMALL else min(1.0, LARGE / side)


def _picture(pictures: ImageFolder, index: int, size: ImageSize) -> Image.Image:
    file = pictures.files[index]
    with strict_pillow():
        whole = decode(file.read(), file.path, pictures.min_size)[0]
    return Image.fromarray(fit(whole, size, "crop").transpose(1, 2, 0))
