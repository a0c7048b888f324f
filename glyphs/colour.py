"""Colours a coverage mask: 6 inks on 4 light grounds.

`colour` is a pure function of (mask, ink, ground); `draw_colours` draws the choice.
"""

from __future__ import annotations

import numpy as np

from smidgen.data.embedded_sets import mix_colours
from smidgen.evaluation.glyph_colours import GROUND_RGB, INK_RGB


def colour(masks: np.ndarray, ink: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Masks (..., H, W) uint8 with ink and ground ids (...,) -> RGB (..., H, W, 3) uint8.

    Coverage mixes ground and ink linearly, rounded half up.
    """
    return mix_colours(masks, INK_RGB[ink], GROUND_RGB[ground])


def draw_colours(count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ink ids and ground ids, (count,) uint8 each, uniform and independent."""
    ink = generator.integers(len(INK_RGB), size=count, dtype=np.uint8)
    ground = generator.integers(len(GROUND_RGB), size=count, dtype=np.uint8)
    return ink, ground
