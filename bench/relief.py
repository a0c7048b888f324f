"""The picture of docs/sds.md: python -m bench.relief SUBJECT/ relief/owl

Some of the subject's pictures, and the views of the relief that `smidgen sds` wrote, enlarged.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from smidgen.cli.pictures import image_grid
from smidgen.distillation.config import VIEWS
from smidgen.files.writing import write_png

PAGE = Path(__file__).parents[1] / "docs/images/relief.png"


def main() -> None:
    """Cut the views apart, and write both rows."""
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


if __name__ == "__main__":
    main()
