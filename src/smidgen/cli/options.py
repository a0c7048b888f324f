"""What several verbs share: groups of flags, checks of numbers and paths, the form of the answer.

Nothing here imports torch: these checks come before any heavy import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smidgen.errors import UsageError, shown
from smidgen.files.settings import SWITCH, flatten, recipe_text, settings_of
from smidgen.files.writing import try_writing
from smidgen.models.names import (
    is_hub_id,
)
from smidgen.processes import is_main

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    """How to run and how to answer; never part of a recipe."""

    dry_run: bool = dataclasses.field(default=False, metadata=SWITCH)
    """Check everything, print the resolved recipe and what it would do, and stop."""
    json: bool = dataclasses.field(default=False, metadata=SWITCH)
    """Answer with one JSON document on stdout and nothing else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputSwitches(Switches):
    """How to run, to answer, and to treat what is there already; never part of a recipe."""

    force: bool = dataclasses.field(default=False, metadata=SWITCH)
    """Start over where the output holds something already."""


def check_input(path: Path, what: str) -> None:
    """Raise UsageError unless the path exists."""
    if not path.exists():
        raise UsageError(f"no such {what}: {path}")


def check_images(path: Path, layout: str, split: str | None) -> None:
    """Raise UsageError unless the path is a folder, or may be a hub id that `layout` can fetch; and
    for a split that the layout does not have.
    """
    if layout != "hf" or path.exists() or not is_hub_id(path.as_posix()):
        check_input(path, "folder of images")
        if not path.is_dir():
            raise UsageError(f"{path} is a file; expected a folder of images")
    if split is not None:
        from smidgen.data.layouts import resolve_split

        resolve_split(layout, split)


def check_file(path: Path, what: str) -> None:
    """Raise UsageError unless the path is a file."""
    check_input(path, what)
    if not path.is_file():
        raise UsageError(f"{path} is a folder; expected the file of the {what}")


def check_output_folder(path: Path, output: Path | None = None) -> None:
    """Try to create the folder and a file in it, and leave everything as it was. `output` is what
    was asked for, if that is a file in the folder.

    Raises: UsageError if that fails, saying why.
    """
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise UsageError(f"cannot write {output or path}: {part} is a file, not a folder")
    try:
        try_writing(path)
    except OSError as error:
        raise UsageError(f"cannot write {output or path}: {error.strerror or error}") from error


def check_output_file(path: Path) -> None:
    """Raise UsageError if the path is a folder or its folder cannot be written to."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected a file to write")
    check_output_folder(path.parent, path)


def log(text: str) -> None:
    """One message to the person at the terminal, never to stdout."""
    print(shown(text, keep="\n"), file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Whatever a library prints goes to stderr: stdout is for the answer."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def answer(
    document: Mapping[str, Any], lines: Sequence[str], path: Path | None, *, as_json: bool
) -> None:
    """The document alone with --json; else the lines, and the result's path as the last one. Of
    several processes the main one answers.
    """
    if not is_main():
        return
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for line in lines:
        print(shown(line))
    if path is not None:
        print(path)


def answer_dry_run(configs: Sequence[Any], facts: Mapping[str, Any], *, as_json: bool) -> None:
    """The resolved recipe as TOML and the facts about the run as comments, or both as JSON."""
    values = flatten(*configs)
    if as_json:
        plain = {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
        answer({"recipe": plain, **facts}, [], None, as_json=True)
        return
    recipe = recipe_text(values, settings_of(*map(type, configs))).splitlines()
    answer({}, [*recipe, *(f"# {line}" for line in fact_lines(facts))], None, as_json=False)


def fact_lines(facts: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`name: value` of each fact, nested ones under their path, one of several lines as so many;
    shares in per cent.
    """
    lines = []
    for name, value in facts.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            lines += fact_lines(value, f"{label} ")
        elif isinstance(value, tuple):
            lines += [f"{label}: {one}" for one in value]
        elif isinstance(value, list):
            lines.append(f"{label}: {', '.join(map(str, value))}")
        elif isinstance(value, float) and name == "share":
            lines.append(f"{label}: {value:.4%}")
        else:
            lines.append(f"{label}: {value:,}" if type(value) is int else f"{label}: {value}")
    return lines
