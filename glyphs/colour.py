"""Colours a coverage mask: 6 inks on 4 light grounds.

`colour` is a pure function of (mask, ink, ground); `draw_colours` draws the choice.
"""

from __future__ import annotations

import numpy as np

from smidgen.data.embedded_sets import mix_colours

INKS = {
    "near-black": (24, 24, 28),
    "navy": (24, 48, 120),
    "crimson": (178, 24, 52),
    "green": (16, 110, 60),
    "purple": (104, 40, 140),
    "orange": (212, 96, 12),
}
GROUNDS = {
    "white": (255, 255, 255),
    "cream": (252, 244, 222),
    "grey-blue": (220, 228, 238),
    "pale-green": (224, 242, 224),
}
INK_RGB = np.array(list(INKS.values()), dtype=np.uint8)  # (6, 3)
GROUND_RGB = np.array(list(GROUNDS.values()), dtype=np.uint8)  # (4, 3)


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
