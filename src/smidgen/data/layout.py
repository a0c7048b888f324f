"""What a layout is, how its root is found, and how a list of images becomes an ImageFolder."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from smidgen.data.folder import ImageFile, ImageFolder
from smidgen.data.listing import BadFile, class_name
from smidgen.errors import SmidgenError, shown
from smidgen.files.names import excerpt
from smidgen.files.reading import read_bytes

MOST_LIST_BYTES = 2**28  # of a list or table of a data set: ten times the longest published one
WHITE_SPACE = re.compile(r"[ \t\r\n\f\v]+")  # wide and unbreakable spaces are part of a name
MISSING = "missing: in the list of the data set, not in its folder"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """How one kind of tree is read.

    `read(root, split)` lists it without opening images. `needs` are paths that every such tree has,
    `a|b` for either; `folders` the names under which its archive unpacks: the root may be given as
    that folder or as the one above. `splits` empty: the data names its own.
    """

    title: str
    read: Callable[[Path, str | None], ImageFolder]
    looked_for: str
    needs: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    default_split: str | None = None

    def find(self, root: Path) -> Path:
        """The folder that has all that is needed: `root`, or one of `folders` in it.

        Raises: SmidgenError if there is none, with what was looked for and what was found.
        """
        if not self.needs:
            return root
        for home in (root, *(root / name for name in self.folders)):
            if all(_has(home, need) for need in self.needs):
                return home
        missing = [need.replace("|", " or ") for need in self.needs if not _has(root, need)]
        raise SmidgenError(
            f'"{root}" is not {self.title} as its archives unpack: looked for {self.looked_for}; '
            f"missing: {', '.join(missing)}; found: {contents(root)}"
        )


def _has(home: Path, need: str) -> bool:
    return any((home / path).exists() for path in need.split("|"))


def contents(folder: Path, show: int = 8) -> str:
    """The first names in a folder, folders with a slash, to say what was found."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no such folder"
    try:
        with os.scandir(folder) as found:
            names = sorted(entry.name + "/" * entry.is_dir() for entry in found)
    except OSError as error:
        return f"nothing that may be read ({error.strerror})"
    if not names:
        return "an empty folder"
    more = f" and {len(names) - show:,} more" if len(names) > show else ""
    return ", ".join(shown(name) for name in names[:show]) + more


def first_of(home: Path, *paths: str) -> Path:
    """The first of several places that exists. Raises: SmidgenError if none does."""
    for path in paths:
        if (home / path).exists():
            return home / path
    raise SmidgenError(f'looked for {" or ".join(paths)} in "{home}"; found: {contents(home)}')


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not empty, without the white space around them.

    Raises: SmidgenError if it cannot be read.
    """
    data = read_bytes(path, MOST_LIST_BYTES)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_table(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """What each row of a CSV file has in `columns`, without the white space around it.

    Raises: SmidgenError if it cannot be read, or has not these columns.
    """
    try:
        text = read_bytes(path, MOST_LIST_BYTES).decode("utf-8")
        table = csv.DictReader(io.StringIO(text, newline=""))
        lacking = [column for column in columns if column not in (table.fieldnames or ())]
        if lacking:
            raise SmidgenError(f"{path} has no column {' or '.join(lacking)}")
        return [tuple((row[column] or "").strip() for column in columns) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SmidgenError(f"cannot read {path}: {error}") from error


def pairs(path: Path) -> list[tuple[str, str]]:
    """Lines `key value` of a list; the value may hold spaces.

    Raises: SmidgenError if a line has no value.
    """
    found = []
    for line in read_lines(path):
        key, _, value = line.partition(" ")
        if not value:
            raise SmidgenError(f'a line of {path} is "{excerpt(line)}"; expected two words')
        found.append((key, value.strip()))
    return found


def safe_names(names: Iterable[str]) -> tuple[str, ...]:
    """Official names as class names: without slashes, breaks and dots in front, and unique.

    Names that occur twice get their number, as the classes of a base do.

    Raises: SmidgenError if one is not UTF-8.
    """
    cleaned = []
    for number, name in enumerate(names):
        name = class_name(WHITE_SPACE.sub(" ", name)).replace("/", "-").replace("\\", "-")
        cleaned.append(name.strip(" ").lstrip(".").strip(" ") or str(number))
    counts = Counter(cleaned)
    return tuple(
        f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(cleaned)
    )


def spaced(name: str) -> str:
    """`apple_pie` as `apple pie`."""
    return name.replace("_", " ")


def listed(
    root: Path,
    classes: Sequence[str],
    items: Iterable[tuple[Path, int]],
    bad: Iterable[BadFile] = (),
) -> ImageFolder:
    """The images of an official list, (path, class index) each; those that are not there are bad.

    Looks into each folder once rather than at every file.

    Raises: SmidgenError if a path does not lie below `root`.
    """
    present: dict[Path, set[str]] = {}
    files: list[ImageFile] = []
    absent: list[BadFile] = []
    for path, label in items:
        names = present.get(path.parent)
        if names is None:
            check_inside(root, path)
            names = present[path.parent] = names_in(path.parent)
        if path.name in names:
            files.append(ImageFile(path=path, class_number=label))
        else:
            absent.append(BadFile(path=path, reason=MISSING))
    return ImageFolder(
        root=root, classes=safe_names(classes), files=tuple(files), bad=(*bad, *absent)
    )


def check_inside(root: Path, path: Path) -> None:
    """Raises SmidgenError for a path of a list that leads out of the data set."""
    if not path.is_relative_to(root) or ".." in path.relative_to(root).parts:
        raise SmidgenError(f'a list of "{root}" names {excerpt(str(path))}, which lies elsewhere')


def names_in(folder: Path) -> set[str]:
    """All names in a folder, none if it cannot be read."""
    try:
        return set(os.listdir(folder))  # noqa: PTH208 (a million names: strings are enough)
    except (OSError, ValueError):  # a null character in the name
        return set()


def only_used(folder: ImageFolder) -> ImageFolder:
    """Without the classes that have no image, for data that may name more than it shows."""
    used = sorted(set(folder.class_numbers))
    numbers = {label: number for number, label in enumerate(used)}
    return dataclasses.replace(
        folder,
        classes=tuple(folder.classes[label] for label in used),
        files=tuple(
            dataclasses.replace(file, class_number=numbers[file.class_number])
            for file in folder.files
        ),
    )
