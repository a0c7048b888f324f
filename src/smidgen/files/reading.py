"""The one way in which JSON and TOML are read: within a limit of size, and checked against a type
before anything uses them. What a file holds never ends in a traceback, a hang or gigabytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from smidgen.errors import SmidgenError

MOST_BYTES = 2**26  # of any JSON or TOML: far beyond a label table's names, far below the memory
MOST_DEPTH = 32  # of tables and lists in each other: what is checked or shown later may recurse
MOST_SHOWN = 160  # of a reason

_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""  # of a dotted name in TOML
# a name begins a line, or comes behind a bracket or a comma
DEEP_KEY = re.compile(
    rf"(?:^|[\[{{,])[ \t]*+{_PART}(?:\.[ \t]*+{_PART}){{{MOST_DEPTH},}}", re.MULTILINE
)

CONSTANT = re.compile(rb"\b(?:NaN|Infinity)\b")

T = TypeVar("T")


class Unreadable(SmidgenError):
    """A file that is missing, no ordinary file, too large, or not what it should be; `reason` is
    why, without the file's name.
    """

    def __init__(self, message: str, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = message if reason is None else reason


def read_bytes(path: Path | str, most: int = MOST_BYTES) -> bytes:
    """All of an ordinary file; a pipe or a device is never opened. Raises: Unreadable."""
    size = size_of(path)
    if size > most:
        raise _unreadable(path, f"it has {size:,} bytes; at most {most:,} are read")
    try:
        with Path(path).open("rb") as file:
            return file.read(size)  # a limit sets aside as much memory as it says
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def size_of(path: Path | str) -> int:
    """The bytes of an ordinary file, for whoever reads it in another way.

    Raises: Unreadable if there is none, or it is a folder, a pipe, a socket or a device.
    """
    try:
        facts = Path(path).stat()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except ValueError as error:  # a null character in the name
        raise _unreadable(path, str(error)) from error
    if not stat.S_ISREG(facts.st_mode):
        what = "a folder" if stat.S_ISDIR(facts.st_mode) else "no ordinary file"
        raise _unreadable(path, f"it is {what}")
    return facts.st_size


def sha256_of(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises: OSError."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(
    path: Path | str, schema: type[T], most: int = MOST_BYTES, *, constants: bool = False
) -> T:
    """The document in a JSON file as `schema`: any type that msgspec takes, dict[str, Any] too.

    `constants`: as `parse_json`.

    Raises: Unreadable if there is none, or it is no such document, with the place that is wrong.
    """
    content = read_bytes(path, most)
    try:
        return parse_json(content, schema, constants=constants)
    except Unreadable as error:
        raise _unreadable(path, error.reason) from error


def parse_json(content: bytes | str, schema: type[T], *, constants: bool = False) -> T:
    """A JSON text as `schema`.

    `constants`: NaN and Infinity, which are no JSON and which Python's own writer leaves in, mean
    null.

    Raises: Unreadable with the place that is wrong.
    """
    try:
        if constants and CONSTANT.search(
            content if isinstance(content, bytes) else content.encode()
        ):
            content = msgspec.json.encode(json.loads(content, parse_constant=lambda _: None))
        found = msgspec.json.decode(content, type=schema)
        if _is_deeper(found, MOST_DEPTH):
            raise RecursionError
        return found
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise Unreadable(in_one_line(error)) from error


def fit(value: Any, schema: type[T]) -> T:
    """Plain values, as JSON or TOML gives them, as `schema`.

    Raises: Unreadable with the place that is wrong.
    """
    try:
        return msgspec.convert(value, schema)
    except RecursionError as error:
        raise Unreadable("it is nested too deeply") from error
    except msgspec.MsgspecError as error:
        raise Unreadable(in_one_line(error)) from error


def read_toml(path: Path | str, most: int = 2**20) -> dict[str, Any]:
    """The table in a TOML file. Raises: Unreadable, with the line of what is no TOML."""
    content = read_bytes(path, most)
    try:
        text = content.decode("utf-8")
        if DEEP_KEY.search(text):  # whose parts take the parser the square of their number
            raise RecursionError
        table = tomllib.loads(text)
        if _is_deeper(table, MOST_DEPTH):
            raise RecursionError
    except RecursionError as error:
        raise _unreadable(path, "it is nested too deeply") from error
    except (ValueError, UnicodeDecodeError) as error:  # a TOMLDecodeError is a ValueError
        raise _unreadable(path, f"not valid TOML: {in_one_line(error)}") from error
    return table


def _is_deeper(value: Any, most: int) -> bool:
    """Whether tables and lists lie in each other more than `most` deep, found without recursion."""
    layer = [value]
    for _ in range(most):
        layer = [inner for one in layer for inner in _parts(one)]
    return any(isinstance(one, dict | list) for one in layer)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, msgspec.Struct):
        return (getattr(value, name) for name in value.__struct_fields__)
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _unreadable(path: Path | str, reason: str) -> Unreadable:
    return Unreadable(f"cannot read {path}: {reason}", reason)


def in_one_line(error: Exception | str) -> str:
    """What a library says of a file: its first line, which may quote the file and be long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    shown = "".join(char if char.isprintable() else " " for char in lines[0])
    return " ".join(shown.split())[:MOST_SHOWN]
