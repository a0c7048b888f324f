"""Tables of captions as Hugging Face's image folders have them: rows of metadata.jsonl or
metadata.csv name a file below the folder, and its captions.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from smidgen.data.folder import ImageFolder
from smidgen.errors import SmidgenError, shown
from smidgen.files.reading import Unreadable, fit, in_one_line, read_bytes

TABLES = ("metadata.jsonl", "metadata.csv")
COLUMNS = ("text", "caption", "prompt")  # of captions, the first that there is


def find_table(folder: ImageFolder) -> Path | None:
    """The folder's table of metadata; the first where it has both."""
    return next((path for name in TABLES if (path := folder.root / name).is_file()), None)


def key_in(folder: ImageFolder, path: Path) -> str:
    return path.relative_to(folder.root).as_posix()


def read_table(folder: ImageFolder, path: Path) -> dict[str, tuple[str, ...]]:
    """The captions of each file that the table names."""
    found: dict[str, tuple[str, ...]] = {}
    known = {key_in(folder, file.path) for file in folder.files}
    skipped = {key_in(folder, bad.path) for bad in folder.bad}
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
