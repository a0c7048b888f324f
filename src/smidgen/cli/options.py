"""What several verbs share: groups of flags, checks of numbers and paths, the form of the answer.

Nothing here imports torch: these checks come before any heavy import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smidgen.errors import UsageError, shown
from smidgen.files.checks import check_number
from smidgen.files.settings import SWITCH, flatten, recipe_text, settings_of
from smidgen.files.writing import try_writing
from smidgen.models.names import (
    FILE_SUFFIXES,
    BasePrecision,
    is_architecture,
    is_hub_id,
    shipped_names,
)
from smidgen.processes import is_main
from smidgen.sizes import ImageSize

if TYPE_CHECKING:
    from smidgen.models.base import Base

DEVICES = Literal["auto", "cpu", "cuda"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """The pretrained base."""

    base: str
    """A shipped name (glyphs), a folder, a file (.pt, .safetensors) or a hub id."""
    codec: str | None = None
    """Codec (VAE) folder or hub id, for a base file that has none of its own."""
    image_size: ImageSize | None = None
    """Size of the images in pixels, a number or WIDTHxHEIGHT; none: what the base was trained
    for."""
    frequency_shift: float | None = None
    """Shift of the timestep frequencies; none: 0, that of the released weights."""

    def __post_init__(self) -> None:
        self.check_name()
        check_number("frequency_shift", self.frequency_shift)

    def check_name(self) -> None:
        """Raises: UsageError, as `check_base_name`."""
        check_base_name(self.base)

    def given(self) -> dict[str, Any]:
        """What `load_base` is told besides the name and the image size, as recipes have it."""
        settings = {"codec": self.codec, "frequency_shift": self.frequency_shift}
        return {name: value for name, value in settings.items() if value is not None}

    def load(self, **more: Any) -> Base:
        """The base that these options mean; `more` as `load_base` takes it."""
        from smidgen import api

        return api.load_base(self.base, image_size=self.image_size, **self.given(), **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseOnDevice(BaseOptions):
    """The pretrained base."""

    device: DEVICES = "auto"
    """auto: the accelerator if there is one."""
    base_precision: BasePrecision | None = None
    """Number format in which its frozen weights are kept: half as many bytes in bf16 or fp16, a
    quarter in int8, and the passes go on in --precision; none: as a pipeline's files have them."""

    def given(self) -> dict[str, Any]:
        """What `load_base` is told besides the name and the image size, as recipes have it."""
        own = {} if self.base_precision is None else {"base_precision": self.base_precision}
        return super().given() | own

    def load(self, **more: Any) -> Base:
        """The base on its device."""
        from smidgen.models.calling import device_of

        return super().load(device=device_of(self.device), **more)


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


def check_base_name(name: str) -> None:
    """Refuse early what can be no base: neither shipped, nor a path, nor the form of a hub id.

    Raises: UsageError.
    """
    if Path(name).exists() or name in shipped_names():
        return
    if is_architecture(name):
        file = "a file" if name.startswith("DiT-") else "a hub id"
        raise UsageError(
            f'"{name}" is an architecture without weights; give --base a folder or {file} '
            f"with its weights (smidgen inspect {name} needs none)"
        )
    looks_like_path = name.startswith((".", "/", "~")) or Path(name).suffix in FILE_SUFFIXES
    if looks_like_path or not is_hub_id(name):
        near = difflib.get_close_matches(name, shipped_names(), n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise UsageError(
            f'no base "{name}"{hint}; shipped: {", ".join(shipped_names()) or "none"}; '
            "else give a folder, a file or a hub id (owner/name)"
        )


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
