"""Records every font that trained or judged anything here.

`python -m glyphs.record` writes glyphs/fonts.tsv: file, family, package, licence, side of the split
and the scripts that were drawn from it, a line a font.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from glyphs.fonts import load_fonts
from glyphs.render import DATA, load_script
from glyphs.scripts import SCRIPTS

RECORD = Path(__file__).with_name("fonts.tsv")
COLUMNS = ("file", "family", "package", "licence", "families", "scripts")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    fonts = load_fonts(DATA / "fonts.json")
    drawn: dict[int, list[str]] = defaultdict(list)
    for name in SCRIPTS:
        for place in load_script(name).font:
            drawn[int(place)].append(name)
    with RECORD.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        for place, scripts in sorted(drawn.items()):
            font = fonts[place]
            side = "unseen" if font.test else "training"
            name = font.path.rsplit("/", 1)[1]
            table.writerow((name, font.family, font.package, font.licence, side, " ".join(scripts)))
    print(f"{RECORD}: {len(drawn):,} fonts")


if __name__ == "__main__":
    main()
