"""Packs the Greek downstream set that ships inside the package.

`python -m glyphs.pack_greek` chooses as many images of every class, families in turn so that large
ones do not dominate, and writes src/smidgen/data/embedded/greek/{glyphs.npz,LICENSES.json}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont

from glyphs.colour import GROUND_RGB, INK_RGB, draw_colours
from glyphs.fonts import Font, load_fonts
from glyphs.render import DATA, Glyphs, load_script
from smidgen.data.embedded_sets import LEVELS, EmbeddedSet, save_set

FOLDER = Path("src/smidgen/data/embedded/greek")
PER_CLASS = {"train": 250, "test": 70}
SEED = 0


def families_in_turn(
    fonts: np.ndarray, family: np.ndarray, generator: np.random.Generator
) -> Iterator[int]:
    """Places in `fonts` (F,): one font of each family, then another of each, without end."""
    queues = {f: generator.permutation(fonts[family[fonts] == f]) for f in set(family[fonts])}
    turn = 0
    while True:
        for key in generator.permutation(sorted(queues)):
            yield queues[key][turn % len(queues[key])]
        turn += 1


def choose(glyphs: Glyphs, test: bool, generator: np.random.Generator) -> np.ndarray:
    """(M, 2) pairs (font, class): PER_CLASS different fonts for each class.

    Raises: ValueError if there are fewer fonts.
    """
    count = PER_CLASS["test" if test else "train"]
    fonts = np.flatnonzero(glyphs.test == test)
    if len(fonts) < count:
        raise ValueError(f"{len(fonts)} fonts for {count} images a class; lower PER_CLASS")
    pairs = []
    for label in range(len(glyphs.class_names)):
        chosen: dict[int, None] = {}
        for font in families_in_turn(fonts, glyphs.family, generator):
            chosen[font] = None
            if len(chosen) == count:
                break
        pairs += [(font, label) for font in chosen]
    return np.array(pairs)


def font_notice(font: Font) -> dict[str, str]:
    """What LICENSES.json says of a font."""
    with TTFont(font.file, lazy=True) as tables:
        notice = tables["name"].getDebugName(0) or ""
    return {
        "file": font.path.rsplit("/", 1)[1],
        "family": font.family,
        "package": font.package,
        "licence": font.licence,
        "copyright": " ".join(notice.split())[:160],
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    generator = np.random.default_rng(SEED)
    glyphs = load_script("greek")
    halves = [choose(glyphs, test, generator) for test in (False, True)]
    fonts, labels = np.concatenate(halves).T
    ink, ground = draw_colours(len(fonts), generator)
    used, font_ids = np.unique(fonts, return_inverse=True)
    masks = glyphs.masks[fonts, labels].astype(np.float32)
    embedded = EmbeddedSet(
        levels=np.rint(masks * (LEVELS - 1) / 255).astype(np.uint8),
        label=labels,
        ink=ink,
        ground=ground,
        is_test=glyphs.test[fonts],
        font=font_ids,
        inks=INK_RGB,
        grounds=GROUND_RGB,
        class_names=tuple(glyphs.class_names),
    )
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_set(embedded, FOLDER / "glyphs.npz")
    known = load_fonts(DATA / "fonts.json")
    notices = [font_notice(known[glyphs.font[place]]) for place in used]
    lines = ",\n".join(json.dumps(notice, ensure_ascii=False) for notice in notices)
    (FOLDER / "LICENSES.json").write_text(f"[\n{lines}\n]\n")
    families = [len(set(glyphs.family[pairs[:, 0]])) for pairs in halves]
    size = (FOLDER / "glyphs.npz").stat().st_size
    print(f"train {len(halves[0])} images of {families[0]} families")
    print(f"test {len(halves[1])} images of {families[1]} families; {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
