"""Which deltas a new version of their base orphans, and the command that trains each again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from smidgen.core.delta import Delta
from smidgen.core.fingerprint import fingerprints_match, shapes_match
from smidgen.core.word import Word
from smidgen.errors import SmidgenError
from smidgen.files.names import file_part
from smidgen.files.run_files import DELTA, RECIPE
from smidgen.files.toml import NONE
from smidgen.models.base import Base
from smidgen.models.prompts import DREAMBOOTH
from smidgen.training.recipe import read_recipe
from smidgen.training.start import can_begin

Verdict = Literal["fits", "orphan", "lost", "unreadable"]


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How a delta stands to a base.

    fits: it acts in it as it is. orphan: the weights are others, of the same names and shapes, and
    `command` trains it again from where it is. lost: no training can begin from it. `reason` says
    why it does not fit, `base` of which one it is.
    """

    name: str
    path: str
    verdict: Verdict
    base: str | None = None
    method: str | None = None
    reason: str | None = None
    command: str | None = None


def fits_of(base: Base, deltas: Iterable[tuple[str, Path]]) -> list[Fit]:
    """How each of the deltas, by name and file, stands to `base`."""
    encoders: dict[str, str] = {}
    found = []
    for name, path in deltas:
        try:
            delta = Delta.load(path)
        except SmidgenError as error:
            one = Fit(name=name, path=str(path), verdict="unreadable", reason=str(error))
            found.append(one)
            continue
        if delta.components and base.conditioner is not None and not encoders:
            with base.conditioner.open() as reader:
                encoders = {one.component: one.fingerprint for one in reader.encoders}
        found.append(_fit(base, delta, name, path, encoders))
    return found


def _fit(base: Base, delta: Delta, name: str, path: Path, encoders: Mapping[str, str]) -> Fit:
    known = delta.provenance
    pairs = {"denoiser": (known.fingerprint, base.fingerprint)}
    pairs |= {one: (known.components[one], encoders.get(one, "")) for one in delta.components}
    others = [one for one, pair in pairs.items() if not all(pair) or not fingerprints_match(*pair)]
    verdict: Verdict = "orphan" if others else "fits"
    reason = f"other weights in the {' and the '.join(others)}" if others else None
    shaped = [one for one in others if not all(pairs[one]) or not shapes_match(*pairs[one])]
    if shaped:
        verdict, reason = "lost", f"other shapes in the {' and the '.join(shaped)}"
    elif others and (why := can_begin(delta, base.fingerprint)) is not None:
        verdict, reason = "lost", why
    return Fit(
        name=name,
        path=str(path),
        verdict=verdict,
        base=known.base,
        method=known.method,
        reason=reason,
        command=shlex.join(_command(base, delta, path)) if verdict == "orphan" else None,
    )


def _command(base: Base, delta: Delta, path: Path) -> list[str]:
    """The command line that trains such a delta on `base`, from the recipe of the run if that is
    there; else the data is left to be named.
    """
    run = path.parent if path.name == DELTA else path.with_suffix("")
    output = run.with_name(f"{run.name}-{file_part(Path(base.name).stem)}")
    command = ["smidgen", "train"]
    if path.name == DELTA and read_recipe(run) is not None:
        command.append(str(run / RECIPE))
    else:
        own = delta.provenance
        command += ["--data", "DATA", "--method", own.method, *_flags(own.config)]
        command += _task(delta)
    command += ["--base", base.name, "--init", str(path), "--init-other-base"]
    return [*command, "--output", str(output)]


def _task(delta: Delta) -> list[str]:
    """What the delta was trained for, as far as a run that begins from it must be told."""
    words = {edit.token for edit in delta.edits.values() if isinstance(edit, Word)}
    subject = delta.provenance.training.get(DREAMBOOTH)
    if not subject:
        return [part for word in words for part in ("--token", word)]
    told = {"token": "token", "class_name": "class-name", "instance_prompt": "instance-prompt"}
    told |= {"class_prompt": "prompt"}
    flags = [part for name, flag in told.items() for part in (f"--{flag}", subject[name])]
    return ["--task", DREAMBOOTH, *flags]


def _flags(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The options of a method, those of one of several under its name."""
    for name, value in config.items():
        flag = prefix + name.replace("_", "-")
        if isinstance(value, Mapping):
            yield from _flags(value, f"{flag}.")
        elif isinstance(value, bool):
            group, dot, leaf = flag.rpartition(".")
            yield f"--{flag}" if value else f"--{group}{dot}no-{leaf}"
        elif isinstance(value, list | tuple):
            yield from (f"--{flag}", *map(str, value))
        else:
            yield from (f"--{flag}", NONE if value is None else str(value))
