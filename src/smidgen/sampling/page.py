"""page.html of a folder of samples: all images, a row for each class or prompt, with what they were
drawn with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from smidgen.errors import SmidgenError
from smidgen.files.names import excerpt
from smidgen.files.pages import png_address, rendered
from smidgen.files.toml import toml
from smidgen.files.writing import write_text
from smidgen.sampling.folder import SampleRecord, image_name

PAGE = "page.html"
LARGE = 128  # pixels of a side: pictures under this are enlarged without smoothing
SHOWN = 160  # pixels of a picture's longer side on the page
LONG = ("prompt", "classes")  # settings that the rows show


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One image: its number, file and address, and how large it is shown."""

    number: int
    file: str
    address: str
    width: int
    height: int
    pixelated: bool


def write_page(record: SampleRecord, folder: Path) -> Path:
    """Writes the page of the images that the record lists; its path.

    Raises: SmidgenError for an image that is gone, or if the disk refuses.
    """
    rows: dict[str, list[Cell]] = {}
    for file, shown in record.images.items():
        number = file.partition("-")[0]
        if not number.isdecimal() or file != image_name(int(number), shown):
            raise SmidgenError(
                f'{folder / "sample.json"} names "{excerpt(file)}", which no sample is called; '
                "sample with --force"
            )
        rows.setdefault(shown, []).append(_cell(folder, file))
    page = rendered(
        "smidgen.sampling",
        "page.html.jinja",
        {
            "title": folder.resolve().name or "samples",
            "count": len(record.images),
            "rows": list(rows.items()),
            "settings": list(_settings(record.settings)),
            "first": next(iter(record.images), ""),
        },
    )
    write_text(page, folder / PAGE)
    return folder / PAGE


def _cell(folder: Path, file: str) -> Cell:
    try:
        with Image.open(folder / file) as image:
            width, height = image.size
        address = png_address(folder / file)
    except OSError as error:
        raise SmidgenError(f"{folder / file} cannot be read; sample with --force") from error
    share = SHOWN / max(width, height)
    return Cell(
        number=int(file.partition("-")[0]),
        file=file,
        address=address,
        width=round(width * share),
        height=round(height * share),
        pixelated=max(width, height) <= LARGE,
    )


def _settings(settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was asked for, in words: without what is not said, and what the rows show."""
    for name, value in settings.items():
        if value not in (None, "", [], ()) and name not in LONG:
            yield name.replace("_", " "), value if isinstance(value, str) else toml(value)
