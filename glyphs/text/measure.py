"""Measures `glyphs-text` and `clip-glyphs`.

`python -m glyphs.text.measure` writes results/measured-glyphs-text.json. The base draws captions
whose thing, ink and ground were never drawn together in training; what it drew is read by judge.py.
The CLIP is measured on real drawings that it has not seen: on names in the unseen style, and on
whether two pictures of one subject are nearer than two of different subjects of one class.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glyphs.classifier import WEIGHTS
from glyphs.images import EMBEDDED, log, to_images, write_result
from glyphs.samples import save_grid
from glyphs.text.captions import GROUND_WORDS, INK_WORDS, Caption, letter_noun
from glyphs.text.clip import NAME
from glyphs.text.drawings import load_drawings, read_names
from glyphs.text.judge import Clip
from glyphs.text.pictures import (
    LONGER,
    SUBJECT_CLASSES,
    SUBJECT_STYLES,
    TILT,
    UNSEEN_STYLE,
    held_out,
    place,
)
from smidgen.api import load_base, sample_arrays
from smidgen.data.embedded_sets import mix_colours
from smidgen.evaluation.classifier import GlyphClassifier
from smidgen.evaluation.glyph_colours import (
    GROUND_RGB,
    GROUNDS,
    INK_RGB,
    INKS,
    grounds_of,
    inks_of,
)

STEPS, GUIDANCE, SAMPLER = 25, 4.0, "dpm++"
COLOURS = list(itertools.product(range(len(INKS)), range(len(GROUNDS))))


def unseen_captions(nouns: list[str], picture: bool, each: int) -> list[tuple[str, int, int, int]]:
    """(caption, place of its noun, ink, ground): `each` of a noun, in colours held out for it."""
    found = []
    for number, noun in enumerate(nouns):
        free = [pair for pair in COLOURS if held_out(noun, *pair)]
        chosen = np.random.default_rng(number).permutation(len(free))[:each]
        for ink, ground in (free[i] for i in chosen):
            words = INK_WORDS[ink], GROUND_WORDS[ground]
            caption = Caption(noun=noun, picture=picture, ink=words[0], ground=words[1])
            found.append((str(caption), number, ink, ground))
    return found


def draw(base, captions: list[str]) -> np.ndarray:
    """One image (B, 32, 32, 3) of each caption."""
    batches = sample_arrays(
        base, prompts=captions, steps=STEPS, guidance=GUIDANCE, sampler=SAMPLER, batch_size=64
    )
    return np.concatenate([images for _, images, _ in batches])


def share(right: np.ndarray) -> float:
    return round(float(right.mean()), 4)


def measure_base(base, clip: Clip, each: int, grid: Path | None) -> dict[str, dict[str, float]]:
    """How often ink, ground and thing are those of the caption, of letters and of pictographs."""
    classifier = GlyphClassifier.load(WEIGHTS)
    letters = classifier.scripts["latin"]
    found = {}
    for kind, nouns in {
        "letters": [letter_noun(name) for name in letters],
        "pictographs": list(read_names()),
    }.items():
        asked = unseen_captions(nouns, kind == "pictographs", each)
        captions, noun, ink, ground = (list(column) for column in zip(*asked, strict=True))
        images = draw(base, captions)
        grounds = grounds_of(images)
        if kind == "letters":
            seen = classifier.logits(to_images(images), "latin").argmax(1).numpy()
        else:
            seen = clip.nearest(images, nouns)
        found[kind] = {
            "num_images": len(images),
            "ink": share(inks_of(images, grounds) == ink),
            "ground": share(grounds == ground),
            "thing": share(seen == noun),
        }
        log(f"{kind}: {found[kind]}")
        if grid:
            save_grid(to_images(images[:480]), 24, grid.with_name(f"{grid.stem}-{kind}.png"))
    return found


def real(masks: Tensor, each: int, random: np.random.Generator) -> np.ndarray:
    """`each` pictures of drawings (D, SIDE, SIDE) in other colours: (D * each, 32, 32, 3) uint8."""
    masks = masks.repeat_interleave(each, 0)
    count = len(masks)
    degrees = random.uniform(*TILT, count) * random.choice([-1, 1], count)
    placed = place(
        masks, random.uniform(*LONGER, count), degrees, random.uniform(-1, 1, (count, 2))
    )
    colours = np.concatenate([random.permutation(COLOURS)[:each] for _ in range(count // each)])
    return mix_colours(placed, INK_RGB[colours[:, 0]], GROUND_RGB[colours[:, 1]])


def area_under_curve(higher: Tensor, lower: Tensor) -> float:
    """How often one of `higher` is above one of `lower`; ties count half."""
    above = (higher[:, None] > lower).double() + 0.5 * (higher[:, None] == lower).double()
    return float(above.mean())


def measure_clip(clip: Clip, each: int = 8) -> dict[str, float | int]:
    """Names of drawings in the styles it was trained on and in one it has never seen, and subjects
    of one class told apart.
    """
    drawings, names = load_drawings(), list(read_names())
    random = np.random.default_rng(0)
    found: dict[str, float | int] = {}
    unseen = drawings.style == UNSEEN_STYLE
    for what, chosen in {"unseen_style": unseen, "trained_styles": ~unseen}.items():
        pictures = real(torch.from_numpy(drawings.masks[chosen]), each, random)
        expected = np.repeat([names.index(name) for name in drawings.name[chosen]], each)
        found[f"{what}_names"] = share(clip.nearest(pictures, names) == expected)
        found[f"{what}_pictures"] = len(pictures)
    return found | subjects_apart(clip, each, random)


def subjects_apart(clip: Clip, each: int, random: np.random.Generator) -> dict[str, float | int]:
    """Similarities of two pictures of one subject against two of different subjects of a class."""
    drawings = load_drawings()
    same, other = [], []
    for name in SUBJECT_CLASSES:
        subjects = [
            drawings.masks[(drawings.name == name) & (drawings.style == style)][0]
            for style in SUBJECT_STYLES
        ]
        seen = clip.images(real(torch.from_numpy(np.stack(subjects)), each, random))
        first, second = seen.chunk(2)
        for own in (first, second):
            both = own @ own.T
            same.append(both[~torch.eye(each, dtype=torch.bool)])
        other.append((first @ second.T).flatten())
    alike, unlike = torch.cat(same), torch.cat(other)
    return {
        "area_under_curve": round(area_under_curve(alike, unlike), 4),
        "one_subject": round(float(alike.mean()), 4),
        "two_subjects": round(float(unlike.mean()), 4),
        "num_classes": len(SUBJECT_CLASSES),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=EMBEDDED / "glyphs-text")
    parser.add_argument("--clip", type=Path, default=EMBEDDED / NAME)
    parser.add_argument("--each", type=int, default=3, help="captions of each letter and name")
    parser.add_argument("--grid", type=Path, help="write pictures of what was drawn")
    parser.add_argument("--dry", action="store_true", help="measure, write no results")
    arguments = parser.parse_args()
    clip = Clip(arguments.clip)
    fields = {"clip": measure_clip(clip)}
    log(str(fields["clip"]))
    base = load_base(str(arguments.base))
    fields["base"] = measure_base(base, clip, arguments.each, arguments.grid)
    fields["sampling"] = f"{SAMPLER}, {STEPS} steps, guidance {GUIDANCE:g}, seed 0"
    if not arguments.dry:
        log(str(write_result("measured-glyphs-text", "python -m glyphs.text.measure", fields)))


if __name__ == "__main__":
    main()
