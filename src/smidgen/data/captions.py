"""The captions of a folder's images: from text files beside them, from the folder's table of
metadata, from their names, or none.

A caption belongs to an image by the file it names, never by its position in a list.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from smidgen.data.folder import ImageFile, ImageFolder
from smidgen.errors import SmidgenError, UsageError, shown
from smidgen.files.reading import Unreadable, fit, in_one_line, read_bytes

CaptionSource = Literal["auto", "txt", "jsonl", "filename", "none"]
SUFFIXES = (".txt", ".caption")  # of a caption beside its image
TABLES = ("metadata.jsonl", "metadata.csv")  # as Hugging Face's image folders have them
COLUMNS = ("text", "caption", "prompt")  # of a table, the first that it has
MOST_CAPTION_BYTES = 2**20
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The captions of each image, in the order of the folder's files; an image may have several or
    none. `source` says where they were found: txt, metadata.jsonl, metadata.csv, filename or none.
    """

    texts: tuple[tuple[str, ...], ...]
    source: str

    @property
    def num_with(self) -> int:
        """Images that have a caption."""
        return sum(bool(texts) for texts in self.texts)

    @property
    def distinct(self) -> tuple[str, ...]:
        """Every caption once, in the order of the images."""
        return tuple(dict.fromkeys(text for texts in self.texts for text in texts))

    def lines(self, folder: ImageFolder) -> list[str]:
        """The report: how many images have captions, and which have none."""
        without = [
            folder.name(file.path)
            for file, texts in zip(folder.files, self.texts, strict=True)
            if not texts
        ]
        several = sum(len(texts) > 1 for texts in self.texts)
        found = [f"{self.num_with:,} of {len(self.texts):,} image(s) have captions ({self.source})"]
        if several:
            found.append(f"{several:,} have several, of which a step draws one")
        if without and self.source != "none":
            found.append(f"{len(without):,} have none, and are drawn as if theirs was dropped")
            found += [f"  {name}" for name in without[:SHOWN]]
            if len(without) > SHOWN:
                found.append(f"  … and {len(without) - SHOWN:,} more")
        return found


def read_captions(folder: ImageFolder, source: CaptionSource = "auto") -> Captions:
    """The captions of a folder's images. `auto`: from text files beside the images, else from the
    folder's table of metadata, else none; where both are there, it must be said which.

    Raises: SmidgenError for an empty caption, a table that names an image that is not there or has
        a broken row, text files of which none is beside an image; UsageError where there are none
        of the kind that was asked for, or two kinds and `auto`.
    """
    if source not in get_args(CaptionSource):
        raise UsageError(f'captions is "{source}"; use {", ".join(get_args(CaptionSource))}')
    beside, table = _beside(folder), _table(folder)
    if source == "auto":
        if beside and table:
            raise UsageError(
                f'"{shown(str(folder.root))}" has captions in text files beside its images and in '
                f"{table.name}: say which with --captions txt or --captions jsonl"
            )
        source = "txt" if beside else "jsonl" if table else "none"
    if source == "txt":
        if not beside:
            raise UsageError(_none_beside(folder))
        return _gathered(folder, "txt", lambda file: _read_text(beside.get(file.path), folder))
    if source == "jsonl":
        if table is None:
            raise UsageError(
                f'there is no {" or ".join(TABLES)} in "{shown(str(folder.root))}"; each row has '
                f"file_name and {' or '.join(COLUMNS)}"
            )
        rows = _read_table(folder, table)
        return _gathered(folder, table.name, lambda file: rows.get(_key(folder, file.path), ()))
    named = source == "filename"
    return _gathered(folder, source, lambda file: (_named(file.path, folder),) if named else ())


def _gathered(
    folder: ImageFolder, source: str, texts: Callable[[ImageFile], tuple[str, ...]]
) -> Captions:
    return Captions(texts=tuple(texts(file) for file in folder.files), source=source)


def _beside(folder: ImageFolder) -> dict[Path, Path]:
    """The text file of each image that has one: the image's name with another suffix, or behind
    it.
    """
    there = {bad.path for bad in folder.bad if bad.path.suffix.lower() in SUFFIXES}
    if not there:
        return {}
    found = {}
    for file in folder.files:
        for suffix in SUFFIXES:
            options = (file.path.with_suffix(suffix), file.path.with_name(file.path.name + suffix))
            if (text := next((one for one in options if one in there), None)) is not None:
                found[file.path] = text
                break
    return found


def _none_beside(folder: ImageFolder) -> str:
    others = [bad.path for bad in folder.bad if bad.path.suffix.lower() in SUFFIXES]
    example = folder.files[0].path.with_suffix(SUFFIXES[0])
    what = f'no image of "{shown(str(folder.root))}" has a caption beside it'
    if others:
        what += f", and {folder.name(others[0])} is named after none"
    return f"{what}; such as {folder.name(example)} would be"


def _read_text(path: Path | None, folder: ImageFolder) -> tuple[str, ...]:
    """Each line of a text file that is not empty is one caption."""
    if path is None:
        return ()
    try:
        text = read_bytes(path, MOST_CAPTION_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SmidgenError(
            f"the caption {folder.name(path)} is not UTF-8 text ({error.reason} at byte "
            f"{error.start}); save it as UTF-8"
        ) from error
    captions = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not captions:
        raise SmidgenError(
            f"the caption {folder.name(path)} is empty; write one or remove the file"
        )
    return captions


def _named(path: Path, folder: ImageFolder) -> str:
    caption = " ".join(path.stem.replace("_", " ").split())
    if not caption:
        raise SmidgenError(f"the name of {folder.name(path)} gives no caption; rename it")
    return caption


def _table(folder: ImageFolder) -> Path | None:
    """The folder's table of metadata; the first where it has both."""
    return next((path for name in TABLES if (path := folder.root / name).is_file()), None)


def _key(folder: ImageFolder, path: Path) -> str:
    return path.relative_to(folder.root).as_posix()


def _read_table(folder: ImageFolder, path: Path) -> dict[str, tuple[str, ...]]:
    """The captions of each file that the table names."""
    found: dict[str, tuple[str, ...]] = {}
    known = {_key(folder, file.path) for file in folder.files}
    skipped = {_key(folder, bad.path) for bad in folder.bad}
    for where, row in _rows(path):
        name, texts = _entry(row, where)
        if name not in known | skipped:
            raise SmidgenError(
                f'{where} names "{shown(name)}", which is no image of "{shown(str(folder.root))}"; '
                "file_name is the path below that folder"
            )
        if name in found:
            raise SmidgenError(f'{where} names "{shown(name)}" a second time; give it one row')
        found[name] = texts
    return found


def _rows(path: Path) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """Where each row stands, and the row."""
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SmidgenError(f"{path.name} is not UTF-8 text; save it as UTF-8") from error
    if path.suffix == ".csv":
        try:
            for number, row in enumerate(csv.DictReader(io.StringIO(text), strict=True), 2):
                yield f"row {number} of {path.name}", row
        except csv.Error as error:
            raise SmidgenError(f"{path.name} is no CSV table: {in_one_line(error)}") from error
        return
    for number, line in enumerate(text.splitlines(), 1):
        where = f"line {number} of {path.name}"
        if line.strip():
            try:
                yield where, msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.MsgspecError, RecursionError) as error:
                raise SmidgenError(f"{where} is no JSON object: {in_one_line(error)}") from error


def _entry(row: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """The file that a row names, and its captions: a text, or a list of them."""
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    name = row.get("file_name")
    if not isinstance(name, str) or column is None:
        raise SmidgenError(f"{where} needs file_name and one of {', '.join(COLUMNS)}")
    try:
        texts = [row[column]] if isinstance(row[column], str) else fit(row[column], list[str])
    except Unreadable as error:
        raise SmidgenError(f"{where}: {column} is no text and no list of texts") from error
    stripped = tuple(text.strip() for text in texts)
    if not stripped or not all(stripped):
        raise SmidgenError(f"{where}: {column} is empty; write a caption or remove the row")
    return name, stripped
