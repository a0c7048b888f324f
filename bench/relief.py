"""The picture and the numbers of docs/sds.md: python -m bench.relief SUBJECT/ relief/owl

Some of the subject's pictures, and the views of the relief that `smidgen sds` wrote, enlarged; and
what that found, as bench/results/relief.json.
"""

from __future__ import annotations

import argparse
from datetime import date
from pathlib import Path
from typing import Any

from PIL import Image

from smidgen.cli.pictures import image_grid
from smidgen.distillation.config import DOCUMENT, VIEWS
from smidgen.evaluation.machine import machine
from smidgen.files.reading import read_json
from smidgen.files.writing import write_json, write_png

PAGE, RESULTS = Path("docs/images/relief.png"), Path("bench/results/relief.json")


def main() -> None:
    """Cut the views apart, and write both rows and the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", type=Path, help="folder of the subject's pictures")
    parser.add_argument("relief", type=Path, help="what smidgen sds wrote")
    arguments = parser.parse_args()
    with Image.open(arguments.relief / VIEWS) as views:
        side, count = views.height, views.width // views.height
        cut = [views.crop((n * side, 0, (n + 1) * side, side)) for n in range(count)]
    files = sorted(arguments.subject.glob("*.png"))[:count]
    rows = {"pictures": [Image.open(path).convert("RGB") for path in files], "relief": cut}
    columns = ["from the left", *[""] * (count - 2), "from the right"]
    write_png(image_grid(rows, columns, title="A subject, and a relief of it", scale=3), PAGE)
    found = read_json(arguments.relief / DOCUMENT, dict[str, Any])
    command = "python -m bench.relief data/subjects/owl-ink relief/owl"
    facts = {"command": command, "date": str(date.today()), "machine": machine()}
    write_json(facts | found, RESULTS)


if __name__ == "__main__":
    main()
