"""Packs the subjects that ship: drawings that neither `glyphs-text` nor `clip-glyphs` has seen, of
classes that both know by other drawings. What personalisation is tried and judged on.

`python -m glyphs.text.subjects` writes src/smidgen/data/embedded/subjects: five pictures of each,
which differ in ink, ground, tilt and size, and who drew them.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from glyphs.images import log
from glyphs.text.drawings import EMOJIONE, load_drawings
from glyphs.text.pictures import (
    LONGER,
    LONGER_SMALL,
    SUBJECT_CLASSES,
    SUBJECT_STYLES,
    TILT,
    TILT_MORE,
    place,
)
from smidgen.data.embedded_sets import EMBEDDED, LEVELS, LICENCES, SUBJECTS, EmbeddedSet, save_set
from smidgen.evaluation.glyph_colours import GROUND_RGB, INK_RGB

SMALL = np.array([False, False, True, True, False])  # of the five pictures
TILTED = np.array([False, True, False, True, False])
EACH = len(SMALL)
NOTICE = f"""Each folder holds five pictures of one drawing, coloured, turned and scaled by smidgen.

*-line: from Emoji One (Monotone) 2.2.7 of the Emoji One artists, https://github.com/EmojiTwo/emojitwo
        as {EMOJIONE.name} {EMOJIONE.version},
        CC BY 4.0, https://creativecommons.org/licenses/by/4.0/
*-ink:  from the font Symbola of George Douros, as Debian's fonts-symbola:
        "Fonts are free for any use; they may be opened, edited, modified, regenerated, packaged and
        redistributed."
"""


def five(mask: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Masks (5, 32, 32) of a drawing (SIDE, SIDE), with their inks and grounds (5,)."""
    longer = np.where(SMALL, random.uniform(*LONGER_SMALL, EACH), random.uniform(*LONGER, EACH))
    degrees = np.where(TILTED, random.uniform(*TILT_MORE, EACH), random.uniform(*TILT, EACH))
    degrees *= random.choice([-1, 1], EACH)
    shift = random.uniform(-1, 1, (EACH, 2))
    masks = place(torch.from_numpy(mask).expand(EACH, -1, -1), longer, degrees, shift)
    inks = random.permutation(len(INK_RGB))[:EACH]
    grounds = np.resize(random.permutation(len(GROUND_RGB)), EACH)
    return masks, inks, grounds


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    drawings, random = load_drawings(), np.random.default_rng(0)
    names = sorted(f"{name}-{style}" for name in SUBJECT_CLASSES for style in SUBJECT_STYLES)
    parts = []
    for subject in names:
        name, style = subject.rsplit("-", 1)
        (found,) = np.flatnonzero((drawings.name == name) & (drawings.style == style))
        parts.append(five(drawings.masks[found], random))
    masks, inks, grounds = (np.concatenate(column) for column in zip(*parts, strict=True))
    number = np.repeat(np.arange(len(names)), EACH)
    folder = EMBEDDED / SUBJECTS
    folder.mkdir(exist_ok=True)
    packed = EmbeddedSet(
        levels=np.rint(masks * ((LEVELS - 1) / 255)).astype(np.uint8),
        label=number,
        ink=inks,
        ground=grounds,
        is_test=np.zeros(len(number), bool),
        font=number,
        inks=INK_RGB,
        grounds=GROUND_RGB,
        class_names=tuple(names),
    )
    save_set(packed, folder / "glyphs.npz")
    (folder / LICENCES).write_text(NOTICE)
    size = (folder / "glyphs.npz").stat().st_size
    log(f"{len(number)} pictures of {', '.join(names)}: {size:,} bytes")


if __name__ == "__main__":
    main()
