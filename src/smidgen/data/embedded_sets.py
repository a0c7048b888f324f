"""Image sets that ship inside the package, unpacked as ordinary folders of PNGs.

A set is embedded/<name>/glyphs.npz: grey coverage masks at 16 levels with the ids of an ink and a
ground, half the bytes of the coloured pictures and no loss. LICENSES.json beside it names every
font of letters, LICENSES.txt who made the drawings. N images, K classes; images are 32 x 32.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smidgen.errors import SmidgenError, UsageError
from smidgen.files.reading import Unreadable, read_json

EMBEDDED = resources.files("smidgen.data") / "embedded"
SETS = (
    "greek",
    "cyrillic",
    "hebrew",
    "arabic",
    "georgian",
    "thai",
    "devanagari",
    "hiragana",
    "hangul",
)
SUBJECTS = "subjects"  # a few pictures of each of a few drawings, for personalisation
LINE_DRAWINGS = "line-drawings"  # of a style that no base knows; other things in test than in train
NAMES = (*SETS, SUBJECTS, LINE_DRAWINGS)
REFERENCES = ("latin", *SETS)  # statistics of unseen font families, of the base's script too
INKS = {
    "black": (24, 24, 28),
    "navy": (24, 48, 120),
    "crimson": (178, 24, 52),
    "green": (16, 110, 60),
    "purple": (104, 40, 140),
    "orange": (212, 96, 12),
}
GROUNDS = {
    "white": (255, 255, 255),
    "cream": (252, 244, 222),
    "grey": (220, 228, 238),
    "mint": (224, 242, 224),
}
# of a picture of these sets, a line each
CAPTIONS = {
    SUBJECTS: (
        "a picture of a {{token}} {noun}\na picture of a {{token}} {noun} in {ink} on {ground}\n"
    ),
    LINE_DRAWINGS: "a line picture of {a} {noun} in {ink} on {ground}\n",
}
LEVELS = 16  # grey levels of a mask; 15 is full ink
MARKER = ".smidgen-set.json"  # written last: a folder that has it is complete
SPLITS = ("train", "test")
LICENCES = "LICENSES.txt"


@dataclass(frozen=True, kw_only=True)
class EmbeddedSet:
    """A set in memory. The test images, if there are any, come from font families that no training
    image shows.

    levels (N, 32, 32) uint8 in 0..15, label, ink, ground (N,) ids, is_test (N,) bool; inks and
    grounds are RGB tables (., 3) uint8; font (N,) places in the font list of LICENSES.json.
    """

    levels: np.ndarray
    label: np.ndarray
    ink: np.ndarray
    ground: np.ndarray
    is_test: np.ndarray
    font: np.ndarray
    inks: np.ndarray
    grounds: np.ndarray
    class_names: tuple[str, ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """Its parts, which are folders where there are several."""
        return SPLITS if self.is_test.any() else ("",)

    def captions(self, place: int, template: str) -> str:
        """What a picture shows, by one of CAPTIONS: what its class' name begins with, its ink and
        its ground; {token} is left for the word that will mean a subject.
        """
        noun = self.class_names[self.label[place]].partition("-")[0]
        ink, ground = self.inks[self.ink[place]], self.grounds[self.ground[place]]
        return template.format(
            a="an" if noun[0] in "aeiou" else "a",
            noun=noun,
            ink=_word_of(ink, INKS),
            ground=_word_of(ground, GROUNDS),
        )

    def images(self, chosen: np.ndarray) -> np.ndarray:
        """RGB images (M, 32, 32, 3) uint8 at the places `chosen` (M,)."""
        masks = self.levels[chosen] * np.uint8(255 // (LEVELS - 1))
        return mix_colours(masks, self.inks[self.ink[chosen]], self.grounds[self.ground[chosen]])


def _word_of(colour: np.ndarray, words: Mapping[str, tuple[int, int, int]]) -> str:
    return next(word for word, rgb in words.items() if tuple(colour) == rgb)


def mix_colours(masks: np.ndarray, ink: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Ink (..., 3) over ground (..., 3) by coverage (..., H, W): (..., H, W, 3), all uint8.

    Linear in the RGB values, rounded half up.
    """
    cover = masks[..., None].astype(np.int32)  # (..., H, W, 1)
    over = ink[..., None, None, :].astype(np.int32)
    under = ground[..., None, None, :].astype(np.int32)
    return ((under * (255 - cover) + over * cover + 127) // 255).astype(np.uint8)


def save_set(embedded: EmbeddedSet, path: Path) -> None:
    """Writes what `load_set` reads: two masks' levels in a byte, deflated."""
    halves = embedded.levels.reshape(len(embedded.levels), -1, 2)
    np.savez_compressed(
        path,
        packed=halves[..., 0] << 4 | halves[..., 1],
        label=embedded.label.astype(np.uint8),
        ink=embedded.ink.astype(np.uint8),
        ground=embedded.ground.astype(np.uint8),
        is_test=embedded.is_test,
        font=embedded.font.astype(np.uint16),
        inks=embedded.inks,
        grounds=embedded.grounds,
        class_names=np.array(embedded.class_names),
    )


def load_set(name: str) -> EmbeddedSet:
    """Reads a shipped set. Raises: UsageError if no set has this name."""
    with _arrays_of(name) as arrays:
        packed = arrays["packed"]
        levels = np.stack([packed >> 4, packed & 15], axis=-1).reshape(len(packed), 32, 32)
        rest = {
            key: arrays[key]
            for key in ("label", "ink", "ground", "is_test", "font", "inks", "grounds")
        }
        return EmbeddedSet(levels=levels, class_names=_names_in(arrays), **rest)


def classes_of_set(name: str) -> tuple[str, ...]:
    """The classes of a shipped set, its pictures unread. Raises: as `load_set`."""
    with _arrays_of(name) as arrays:
        return _names_in(arrays)


def _arrays_of(name: str) -> Any:
    """What `save_set` wrote, each array read when it is asked for."""
    if name not in NAMES:
        raise UsageError(f'no image set "{name}" ships with smidgen; choose {", ".join(NAMES)}')
    return np.load(str(EMBEDDED / name / "glyphs.npz"))


def _names_in(arrays: Any) -> tuple[str, ...]:
    return tuple(str(class_name) for class_name in arrays["class_names"])


def shipped_reference(name: str) -> Path:
    """Where the statistics of the unseen font families of a shipped set lie."""
    return Path(str(EMBEDDED / name / "reference.npz"))


def locate_reference(reference: Path | str) -> Path:
    """The path itself, or that of the shipped reference of this name; what exists comes first."""
    path, name = Path(reference), str(reference)
    return shipped_reference(name) if name in REFERENCES and not path.exists() else path


def name_reference(reference: Path | str) -> str:
    """What a result calls a reference: the same on every machine if it is a shipped one."""
    shipped = {shipped_reference(name): name for name in REFERENCES}
    return shipped.get(Path(reference), str(reference))


def unpack(name: str, folder: Path) -> Path:
    """Writes a shipped set as folder/{train,test}/<class>/NNNNN.png and returns the folder; a set
    of one part as folder/<class>/NNNNN.png.

    Does nothing if the folder already holds the set, every picture of it. The pictures are written
    beside it first and moved in one step, so an interrupted call leaves no half-filled folder.

    Raises: UsageError if no set has this name; SmidgenError if the folder has other contents, or
        lacks pictures, or cannot be written.
    """
    folder = Path(folder).absolute()
    if is_whole(name, folder):
        return folder
    embedded = load_set(name)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise SmidgenError(f"cannot write {folder}: {error.strerror}") from error
    try:
        for split in embedded.splits:
            write_split(name, embedded, split, partial / split)
        if (licences := EMBEDDED / name / LICENCES).is_file():
            (partial / LICENCES).write_text(licences.read_text(encoding="utf-8"), encoding="utf-8")
        (partial / MARKER).write_text(json.dumps({"set": name}))
        partial.chmod(0o755)
        partial.replace(folder)
    except OSError as error:
        if read_marker(folder) != {"set": name}:  # else another process was quicker
            raise SmidgenError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def is_whole(name: str, folder: Path) -> bool:
    """Whether the folder holds the unpacked set; False for a folder that is empty or not there.
    Counts the pictures and looks into none.

    Raises: SmidgenError if the folder has other contents, or lacks pictures.
    """
    if read_marker(folder) != {"set": name}:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SmidgenError(f"{folder} has other contents; give a new or an empty folder")
        return False
    embedded = load_set(name)
    expected = len(embedded.label)
    found = sum(1 for split in embedded.splits for _ in (folder / split).glob("*/*.png"))
    if found != expected:
        raise SmidgenError(
            f"{folder} has {found:,} of the {expected:,} pictures of {name}; remove it, or give a "
            "new folder"
        )
    return True


def read_marker(folder: Path) -> dict[str, str] | None:
    """What the folder's marker says; None without a readable marker."""
    try:
        return read_json(folder / MARKER, dict[str, str])
    except Unreadable:
        return None


def write_split(name: str, embedded: EmbeddedSet, split: str, folder: Path) -> None:
    """Writes folder/<class>/NNNNN.png, numbered through the split, and the captions of sets that
    have some.
    """
    chosen = np.flatnonzero(embedded.is_test == (split == "test"))
    for label in np.unique(embedded.label[chosen]):
        (folder / embedded.class_names[label]).mkdir(parents=True)
    for number, (place, image) in enumerate(zip(chosen, embedded.images(chosen), strict=True)):
        class_name = embedded.class_names[embedded.label[place]]
        path = folder / class_name / f"{number:05d}.png"
        Image.fromarray(image).save(path, compress_level=1)
        if template := CAPTIONS.get(name):
            captions = embedded.captions(int(place), template)
            path.with_suffix(".txt").write_text(captions, encoding="utf-8")
