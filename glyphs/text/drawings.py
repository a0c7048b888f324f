"""Fetches free monochrome sets of pictographs and renders the named ones as coverage masks.

`python -m glyphs.text.drawings` writes data/glyphs/pictographs.npz. Two sets are SVG from the npm
registry, two are fonts (Noto Emoji from npm, Symbola from Debian's fonts-symbola). A drawing is
cropped tightly and its longer side fills LONGER of SIDE pixels, four times what is trained on.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import resvg
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from glyphs.images import log
from glyphs.render import DATA

SIDE, LONGER = 128, 104
NAMES = Path(__file__).with_name("names.txt")
MASKS = DATA / "pictographs.npz"
SYMBOLA = Path("/usr/share/fonts/truetype/ancient-scripts/Symbola_hint.ttf")
REGISTRY = "https://registry.npmjs.org"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package of the npm registry, and the SHA-256 of its file."""

    name: str
    version: str
    sha256: str
    licence: str

    @property
    def url(self) -> str:
        return f"{REGISTRY}/{self.name}/-/{self.name.rsplit('/', 1)[-1]}-{self.version}.tgz"


FLUENT = Package(
    name="@iconify-json/fluent-emoji-high-contrast",
    version="1.2.6",
    sha256="0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
    licence="MIT",
)
EMOJIONE = Package(
    name="@iconify-json/emojione-monotone",
    version="1.2.1",
    sha256="40b90004bafb406b59266155ef9b7e1dd67bf2947fc8db8d07388776f4d0d04e",
    licence="CC-BY-4.0",
)
NOTO = Package(
    name="@fontsource/noto-emoji",
    version="5.3.2",
    sha256="1fe49bb2cf7c2d78f93c0a69b6a431dcfd0d585b7831eba87fae6888ccf8d373",
    licence="OFL-1.1",
)
EMOJIBASE = Package(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    licence="MIT",
)


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """Masks (D, SIDE, SIDE) uint8 coverage, and of each its name, style and weight ("" or a word).

    Styles: solid (Fluent high contrast), outline (Noto Emoji), ink (Symbola), line (EmojiOne).
    """

    masks: np.ndarray
    name: np.ndarray
    style: np.ndarray
    weight: np.ndarray


def read_names() -> dict[str, str]:
    """The group of each name, in the order of names.txt."""
    groups = {}
    for line in NAMES.read_text().splitlines():
        group, names = line.split(": ")
        groups |= dict.fromkeys(names.split(", "), group)
    return groups


@cache
def fetched(package: Package) -> tarfile.TarFile:
    """The package's files, kept in data/glyphs.

    Raises: ValueError if the registry gives another file.
    """
    path = DATA / package.url.rsplit("/", 1)[-1]
    if not path.exists():
        with urllib.request.urlopen(package.url) as answer:
            path.write_bytes(answer.read())
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise ValueError(f"{path} is not the {package.name} {package.version} that was used")
    return tarfile.open(path)


def read_from(package: Package, member: str) -> bytes:
    """The content of one file of the package."""
    file = fetched(package).extractfile(f"package/{member}")
    assert file is not None
    return file.read()


def code_points() -> dict[str, int]:
    """Unicode's character for each label in plain words."""
    entries = json.loads(read_from(EMOJIBASE, "en/data.json"))
    return {
        re.sub(r"[^a-z0-9 ]", "", entry["label"].lower()): int(entry["hexcode"].split("-")[0], 16)
        for entry in entries
    }


def fitted(coverage: np.ndarray) -> np.ndarray:
    """Coverage (H, W) cropped to its ink, its longer side LONGER pixels, centred: (SIDE, SIDE)."""
    rows, columns = np.nonzero(coverage > 8)
    ink = coverage[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = LONGER / max(ink.shape)
    size = tuple(max(1, round(length * scale)) for length in reversed(ink.shape))
    small = Image.fromarray(ink).resize(size, Image.Resampling.BOX)
    picture = Image.new("L", (SIDE, SIDE))
    picture.paste(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return np.asarray(picture)


def svg_drawings(package: Package) -> Callable[[str, int], np.ndarray]:
    """Draws an icon of an Iconify set by its name."""
    icons = json.loads(read_from(package, "icons.json"))
    options = resvg.usvg.Options.default()

    def draw(name: str, character: int) -> np.ndarray:
        icon = icons["icons"][name.replace(" ", "-")]
        width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
        scale = 512 / max(width, height)
        box = f'viewBox="0 0 {width} {height}" width="{width * scale}" height="{height * scale}"'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{icon["body"]}</svg>'
        tree = resvg.usvg.Tree.from_str(svg, options)
        png = bytes(resvg.render(tree, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)))
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3]

    return draw


def font_drawings(files: list[bytes]) -> Callable[[str, int], np.ndarray]:
    """Draws a character from the first font that has it."""
    known: dict[int, ImageFont.FreeTypeFont] = {}
    for content in files:
        characters = TTFont(io.BytesIO(content)).getBestCmap()
        font = ImageFont.truetype(io.BytesIO(content), 400)
        known = dict.fromkeys(characters, font) | known

    def draw(name: str, character: int) -> np.ndarray:
        picture = Image.new("L", (900, 900))
        ImageDraw.Draw(picture).text((200, 200), chr(character), fill=255, font=known[character])
        return np.asarray(picture)

    return draw


def noto(weight: int) -> list[bytes]:
    """The files of Noto Emoji at one weight; the registry's package has it in parts."""
    wanted = re.compile(rf"package/files/(noto-emoji-\d+-{weight}-normal\.woff)")
    found = (wanted.fullmatch(name) for name in fetched(NOTO).getnames())
    return [read_from(NOTO, f"files/{match[1]}") for match in found if match]


def all_sets() -> Iterator[tuple[str, str, Callable[[str, int], np.ndarray]]]:
    """Style, weight and pen of every set."""
    yield "solid", "", svg_drawings(FLUENT)
    for word, weight in {"light": 300, "": 500, "bold": 700}.items():
        yield "outline", word, font_drawings(noto(weight))
    yield "ink", "", font_drawings([SYMBOLA.read_bytes()])
    yield "line", "", svg_drawings(EMOJIONE)


def load_drawings() -> Drawings:
    """Reads what this module's command wrote."""
    with np.load(MASKS) as arrays:
        return Drawings(**{key: arrays[key] for key in ("masks", "name", "style", "weight")})


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    DATA.mkdir(parents=True, exist_ok=True)
    names, characters = list(read_names()), code_points()
    drawn = [
        (fitted(draw(name, characters[name])), name, style, weight)
        for style, weight, draw in all_sets()
        for name in names
    ]
    masks, *words = zip(*drawn, strict=True)
    columns = dict(zip(("name", "style", "weight"), map(np.array, words), strict=True))
    np.savez_compressed(MASKS, masks=np.stack(masks), **columns)
    log(f"{MASKS}: {len(drawn):,} drawings of {len(names)} names")


if __name__ == "__main__":
    main()
