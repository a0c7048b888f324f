"""`smidgen orphans`: which deltas a new version of their base leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import Switches, answer, answer_dry_run, quiet_stdout
from smidgen.evaluation.metric_table import aligned
from smidgen.library.files import named
from smidgen.models.chosen import BaseOnDevice

if TYPE_CHECKING:
    from smidgen.library.orphans import Fit

DESCRIPTION = """Say which deltas a new version of their base orphans.

A delta fits if the weights are those that it was trained on. An orphan's base has other weights of
the same names and shapes: the line that trains it again begins from it (--init). Of a base of other
shapes a delta is lost.

examples:
  smidgen orphans bases/glyphs-2 --deltas library
  smidgen orphans glyphs --deltas runs/greek runs/thai --json"""
COLUMNS = ("name", "verdict", "method", "base", "reason")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OrphansOptions:
    """Which deltas are looked at."""

    deltas: tuple[Path, ...]
    """Runs, files of deltas, or folders of them."""


def run(argv: Sequence[str]) -> None:
    """Parse, load the base, compare, answer."""
    parsed = parse(
        read_request("orphans", argv, positional="base"),
        {"base": BaseOnDevice, "place": OrphansOptions},
        switches=Switches,
        description=DESCRIPTION,
    )
    base, place, switches = parsed["base"], parsed["place"], parsed["switches"]
    deltas = named(place.deltas)
    if switches.dry_run:
        facts = {"compared": [name for name, _ in deltas]}
        answer_dry_run([base, place], facts, as_json=switches.json)
        return
    from smidgen.api.library import fits_as_json
    from smidgen.library.orphans import fits_of

    with quiet_stdout():
        found = fits_of(base.load(), deltas)
    document = {"base": base.base, "deltas": fits_as_json(found)}
    answer(document, lines_of(found), None, as_json=switches.json)


def lines_of(found: Sequence[Fit]) -> list[str]:
    """A line for each delta, then a command for each orphan."""
    rows = [[getattr(one, name) or "" for name in COLUMNS] for one in found]
    commands = [one.command for one in found if one.command is not None]
    told = ["", "train again:", *commands] if commands else []
    return [*aligned([list(COLUMNS), *rows]), *told]
