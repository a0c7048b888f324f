"""Packs the set of a drawing style that neither `glyphs-text` nor `clip-glyphs` has seen: named
pictographs in lines, with captions. What learning a style from few pictures is tried and judged on.

`python -m glyphs.text.line_drawings` writes src/smidgen/data/embedded/line-drawings: two pictures
each of 100 things to train on, and ten each of 56 others, so that what is measured is the style and
not the pictures that were shown. The subjects, of which some are in this style, are left out.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from glyphs.images import log
from glyphs.text.drawings import EMOJIONE, Drawings, load_drawings
from glyphs.text.pictures import LONGER, SHIFT, SUBJECT_CLASSES, TILT, UNSEEN_STYLE, place
from smidgen.data.embedded_sets import (
    EMBEDDED,
    LEVELS,
    LICENCES,
    LINE_DRAWINGS,
    EmbeddedSet,
    save_set,
)
from smidgen.evaluation.glyph_colours import GROUND_RGB, INK_RGB

SHOWN, EACH_SHOWN, EACH_OTHER = 100, 2, 10  # things of the training, pictures of each; of others
NOTICE = f"""Each folder holds pictures of one drawing, coloured, turned and scaled by smidgen.

From Emoji One (Monotone) 2.2.7 of the Emoji One artists, https://github.com/EmojiTwo/emojitwo
as {EMOJIONE.name} {EMOJIONE.version},
CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
"""


def packed(drawings: Drawings, random: np.random.Generator) -> EmbeddedSet:
    """The set of all drawings in the unseen style."""
    of_style = (drawings.style == UNSEEN_STYLE) & ~np.isin(drawings.name, SUBJECT_CLASSES)
    found = random.permutation(np.flatnonzero(of_style))
    drawn = np.concatenate(
        [np.repeat(found[:SHOWN], EACH_SHOWN), np.repeat(found[SHOWN:], EACH_OTHER)]
    )
    count = len(drawn)
    masks = place(
        torch.from_numpy(drawings.masks[drawn]),
        random.uniform(*LONGER, count),
        random.uniform(*TILT, count) * random.choice([-1, 1], count),
        random.uniform(-SHIFT, SHIFT, (count, 2)),
    )
    names = sorted(str(name) for name in drawings.name[found])
    label = np.searchsorted(names, drawings.name[drawn])
    return EmbeddedSet(
        levels=np.rint(masks * ((LEVELS - 1) / 255)).astype(np.uint8),
        label=label,
        ink=random.integers(len(INK_RGB), size=count),
        ground=random.integers(len(GROUND_RGB), size=count),
        is_test=np.arange(count) >= SHOWN * EACH_SHOWN,
        font=label,
        inks=INK_RGB,
        grounds=GROUND_RGB,
        class_names=tuple(names),
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    made = packed(load_drawings(), np.random.default_rng(0))
    folder = EMBEDDED / LINE_DRAWINGS
    folder.mkdir(exist_ok=True)
    save_set(made, folder / "glyphs.npz")
    (folder / LICENCES).write_text(NOTICE)
    size = (folder / "glyphs.npz").stat().st_size
    log(f"{len(made.label)} pictures of {len(made.class_names)} things: {size:,} bytes")


if __name__ == "__main__":
    main()
