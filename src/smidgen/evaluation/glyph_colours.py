"""The inks and grounds of the glyph world by their words, and which of them pictures show.

B pictures of H x W pixels, uint8 RGB. A picture mixes one ink and one ground linearly.
"""

from __future__ import annotations

import re

import numpy as np
from jaxtyping import Int, UInt8

from smidgen.data.embedded_sets import GROUNDS, INKS

INK_RGB = np.array(list(INKS.values()), dtype=np.uint8)  # (6, 3)
GROUND_RGB = np.array(list(GROUNDS.values()), dtype=np.uint8)  # (4, 3)
MARGIN = 2  # pixels of a picture's border, which show its ground
ASKED = re.compile(rf" in ({'|'.join(INKS)}) on ({'|'.join(GROUNDS)})$")


def asked_colours(prompt: str) -> tuple[int, int] | None:
    """The ink and the ground that the prompt ends with, ` in navy on white`; None without."""
    found = ASKED.search(prompt)
    return None if found is None else (list(INKS).index(found[1]), list(GROUNDS).index(found[2]))


def grounds_of(images: UInt8[np.ndarray, "B H W 3"]) -> Int[np.ndarray, "B"]:
    """The ground nearest to the median of each picture's border."""
    inner = np.zeros(images.shape[1:3], bool)
    inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    border = np.median(images[:, ~inner].astype(float), axis=1)
    return np.square(border[:, None] - GROUND_RGB.astype(float)).sum(2).argmin(1)


def inks_of(
    images: UInt8[np.ndarray, "B H W 3"], grounds: Int[np.ndarray, "B"]
) -> Int[np.ndarray, "B"]:
    """The ink whose mixtures with its ground explain each picture's pixels best."""
    found = []
    for pixels, ground in zip(images.reshape(len(images), -1, 3), grounds, strict=True):
        towards = INK_RGB.astype(float) - GROUND_RGB[ground]  # (6, 3)
        seen = pixels.astype(float) - GROUND_RGB[ground]  # (H * W, 3)
        share = (seen @ towards.T / np.square(towards).sum(1)).clip(0, 1)  # (H * W, 6)
        missed = seen[:, None] - share[..., None] * towards
        found.append(np.square(missed).sum((0, 2)).argmin())
    return np.array(found, dtype=np.int64)
