"""The files of a delta, checked one by one: what is pushed, and what was pulled.

Pushed records name no folders of this machine; the delta goes as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import msgspec
from PIL import Image

from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.compare import feature_blocks
from smidgen.files.reading import Unreadable, in_one_line, read_json, read_toml, sha256_of, size_of
from smidgen.files.run_files import DELTA, RECIPE, REPORT, RESULT
from smidgen.files.toml import toml
from smidgen.hub.config import CARD, LIMITS, PICTURES

BARE = re.compile(r"[A-Za-z0-9_-]+")  # a name in TOML without quotation marks


class _Report(msgspec.Struct):
    """What is read of a run's report."""

    date: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Contents:
    """What of a run is pushed. `files` by their names on the hub, as they lie here or as they are
    written for it; `result` a document of evaluate; `warnings` what whoever pushes should know.
    """

    delta: Delta
    delta_bytes: int
    files: Mapping[str, Path | bytes]
    result: Mapping[str, Any] | None
    date: str | None
    warnings: tuple[str, ...]

    @property
    def picture(self) -> str | None:
        """The picture of samples that the card shows."""
        return next((name for name in PICTURES if name in self.files), None)


def read_contents(source: Path) -> Contents:
    """All of a run's folder that goes to the hub, or a delta's file alone.

    Raises: UsageError if there is nothing at `source`, or no delta in it; SmidgenError for a file
        that is damaged or too large, or a result of another delta.
    """
    if not source.exists():
        raise UsageError(f"no such run or delta: {source}")
    path = source / DELTA if source.is_dir() else source
    if not path.is_file():
        raise UsageError(f"{source} has no {DELTA}; give the folder of a run, or a delta's file")
    check(DELTA, path)
    delta = Delta.load(path)
    files: dict[str, Path | bytes] = {DELTA: path}
    warnings: list[str] = []
    if _is_place(delta.provenance.base):
        warnings.append(
            f"the delta names its base by a folder of this machine, {delta.provenance.base}, and "
            "is pushed as it is"
        )
    result = date = None
    if source.is_dir():
        for name in (*PICTURES, RESULT, RECIPE):
            if (source / name).exists():
                check(name, source / name)
                files[name] = source / name
        date = _date(source / REPORT)
    if RECIPE in files:
        files[RECIPE] = "".join(_toml_lines(without_places(read_toml(source / RECIPE)))).encode()
    if RESULT in files:
        result, warning = _result(source / RESULT, path)
        warnings += [] if warning is None else [warning]
        del files[RESULT]
        if result is not None:
            files[RESULT] = json.dumps(result, indent=2, ensure_ascii=False).encode() + b"\n"
    return Contents(
        delta=delta,
        delta_bytes=path.stat().st_size,
        files=files,
        result=result,
        date=date,
        warnings=tuple(warnings),
    )


def check(name: str, path: Path) -> None:
    """Raises: SmidgenError if a file is larger than one of this name may be, or is none of its
    kind. Of a delta no more than its size is looked at.
    """
    size = size_of(path)
    if size > LIMITS[name]:
        raise SmidgenError(
            f"{path} has {size:,} bytes; at most {LIMITS[name]:,} are "
            "taken; take it out of the folder, or make it smaller"
        )
    if name in PICTURES:
        _check_picture(path)
    elif name == RESULT:
        read_json(path, dict[str, Any], LIMITS[name], constants=True)
    elif name == RECIPE:
        read_toml(path, LIMITS[name])
    elif name == CARD:
        try:
            path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SmidgenError(f"{path} is no text in UTF-8; get the file again") from error


def _check_picture(path: Path) -> None:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SmidgenError(
            f"{path} is no PNG that can be read "
            f"({in_one_line(error)}); draw it again, or take it away"
        ) from error


def _result(path: Path, delta: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The document for the hub, or why there is none. Raises: SmidgenError, of another delta."""
    document = read_json(path, dict[str, Any], LIMITS[RESULT], constants=True)
    try:
        feature_blocks(str(path), document)
    except SmidgenError as error:
        return None, f"{error}; it is left out"
    sampling = document["protocol"].get("sampling") or {}
    measured = sampling.get("delta_sha256")
    if measured is not None and measured != sha256_of(delta):
        raise SmidgenError(
            f"{path} is the result of another delta than {delta}; evaluate this one, or take the "
            "file away"
        )
    return without_places(document), None


def _date(path: Path) -> str | None:
    try:
        return read_json(path, _Report).date
    except Unreadable:
        return None


def without_places(value: Any) -> Any:
    """Plain values, with the last name alone of every path that begins at a root."""
    if isinstance(value, dict):
        return {name: without_places(one) for name, one in value.items()}
    if isinstance(value, list):
        return [without_places(one) for one in value]
    return last_name(value) if isinstance(value, str) else value


def last_name(text: str) -> str:
    """The last name of a path of this machine; any other text as it is."""
    return PureWindowsPath(text).name if _is_place(text) else text


def _is_place(text: str) -> bool:
    """Whether this is a path from a root. Of one with a slash the first folder must be here, as
    texts may begin with a slash too.
    """
    if PureWindowsPath(text).is_absolute() or text.startswith("~/"):
        return True
    parts = text.split("/", 2)
    return len(parts) == 3 and not parts[0] and "\0" not in text and Path(f"/{parts[1]}").is_dir()


def _toml_lines(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for each value, those of tables under dotted names."""
    for name, value in values.items():
        key = prefix + (name if BARE.fullmatch(name) else toml(name))
        if isinstance(value, dict):
            yield from _toml_lines(value, f"{key}.")
        else:
            yield f"{key} = {toml(value)}\n"
