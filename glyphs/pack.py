"""Packs the downstream sets that ship inside the package.

`python -m glyphs.pack` chooses as many images of every class, families in turn so that large ones
do not dominate, and writes src/smidgen/data/embedded/<set>/{glyphs.npz,LICENSES.json}. A glyph of
which there are too few fonts comes in several colourings.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont

from glyphs.fonts import Font, load_fonts
from glyphs.render import DATA, Glyphs, load_script
from smidgen.data.embedded_sets import LEVELS, EmbeddedSet, save_set
from smidgen.evaluation.glyph_colours import GROUND_RGB, INK_RGB

EMBEDDED = Path("src/smidgen/data/embedded")
# Images of each class from training and from unseen families: from 462 to 12,000 images in all,
# and at least 1,000 unseen ones.
PER_CLASS = {
    "greek": (250, 70),
    "cyrillic": (150, 50),
    "hebrew": (150, 42),
    "arabic": (100, 42),
    "georgian": (14, 32),
    "thai": (150, 30),
    "devanagari": (60, 40),
    "hiragana": (100, 40),
    "hangul": (40, 26),
}
SEED = 0
COLOURINGS = np.array(list(itertools.product(range(len(INK_RGB)), range(len(GROUND_RGB)))))


def families_in_turn(
    fonts: np.ndarray, family: np.ndarray, generator: np.random.Generator
) -> Iterator[int]:
    """Places in `fonts` (F,): one font of each family, then another of each, until all came."""
    queues = {f: list(generator.permutation(fonts[family[fonts] == f])) for f in set(family[fonts])}
    while any(queues.values()):
        for key in generator.permutation(sorted(queues)):
            if queues[key]:
                yield queues[key].pop()


def choose(glyphs: Glyphs, count: int, test: bool, generator: np.random.Generator) -> np.ndarray:
    """(M, 4) rows of font, class, ink and ground: `count` of each class.

    All fonts once before any comes again, and then in another colouring.
    """
    fonts = np.flatnonzero(glyphs.test == test)
    rows = []
    for label in range(len(glyphs.class_names)):
        order = list(families_in_turn(fonts, glyphs.family, generator))
        colours: dict[int, Iterator[np.ndarray]] = defaultdict(
            lambda: iter(generator.permutation(COLOURINGS))
        )
        for font in itertools.islice(itertools.cycle(order), count):
            ink, ground = next(colours[font])
            rows.append((font, label, ink, ground))
    return np.array(rows)


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


def pack(name: str, known: list[Font]) -> None:
    """Writes one set and prints its size."""
    generator = np.random.default_rng(SEED)
    glyphs = load_script(name)
    halves = [
        choose(glyphs, count, test, generator)
        for count, test in zip(PER_CLASS[name], (False, True), strict=True)
    ]
    fonts, labels, ink, ground = np.concatenate(halves).T
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
    folder = EMBEDDED / name
    folder.mkdir(parents=True, exist_ok=True)
    save_set(embedded, folder / "glyphs.npz")
    notices = [font_notice(known[glyphs.font[place]]) for place in used]
    lines = ",\n".join(json.dumps(notice, ensure_ascii=False) for notice in notices)
    (folder / "LICENSES.json").write_text(f"[\n{lines}\n]\n")
    train, test = (
        f"{len(rows)} images of {len(set(glyphs.family[rows[:, 0]]))} families" for rows in halves
    )
    size = (folder / "glyphs.npz").stat().st_size
    print(f"{name}: {len(glyphs.class_names)} classes; train {train}, test {test}; {size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default=",".join(PER_CLASS), help="comma-separated")
    known = load_fonts(DATA / "fonts.json")
    for name in parser.parse_args().sets.split(","):
        pack(name, known)


if __name__ == "__main__":
    main()
