"""`smidgen compare`: results of `smidgen evaluate` side by side."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import Switches, answer, answer_dry_run, check_input, log
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.metric_table import comparison_lines, warning_lines
from smidgen.evaluation.schemas import MOST_RESULT_BYTES
from smidgen.files.reading import read_json
from smidgen.files.run_files import RESULT

DESCRIPTION = """Show results of smidgen evaluate side by side, if their protocols allow it.

examples:
  smidgen compare runs/difffit runs/bitfit
  smidgen compare a/result.json b/result.json --any-protocol --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """What to compare."""

    results: tuple[str, ...] = ()
    """Files that evaluate wrote, or the folders with a result.json in them; two or more."""
    any_protocol: bool = False
    """Compare numbers that were measured in different ways too, and show the differences."""

    def __post_init__(self) -> None:
        if len(self.results) < 2:
            given = "one result" if self.results else "missing results"
            raise UsageError(f"{given}: give two or more to compare")


def run(argv: Sequence[str]) -> None:
    """Parse, read, compare, answer."""
    parsed = parse(
        read_request("compare", argv, positional="results"),
        {"comparison": CompareOptions},
        switches=Switches,
        description=DESCRIPTION,
    )
    options, switches = parsed["comparison"], parsed["switches"]
    paths = [Path(text) for text in options.results]
    for path in paths:
        check_input(path, "result")
    if switches.dry_run:
        answer_dry_run([options], {}, as_json=switches.json)
        return
    documents = {name: read_result(path) for name, path in zip(names(paths), paths, strict=True)}
    from smidgen.evaluation.compare import compare

    comparison = compare(documents, any_protocol=options.any_protocol)
    answer(comparison, comparison_lines(comparison), None, as_json=switches.json)
    sys.stdout.flush()  # the table first, where both go to one place
    for line in warning_lines(comparison["rows"]):
        log(line)


def read_result(path: Path) -> dict[str, Any]:
    """The document in a file, or in the result.json of a folder.

    Raises: SmidgenError if there is none, or it cannot be read.
    """
    path = path / RESULT if path.is_dir() else path
    if not path.exists():
        raise SmidgenError(f"there is no {path}: smidgen evaluate writes it")
    return read_json(path, dict[str, Any], MOST_RESULT_BYTES)


def names(paths: Sequence[Path]) -> list[str]:
    """A name for each result: its folder, or its file where the folder does not tell them apart.

    Raises: UsageError if one is given twice.
    """
    resolved = [path / RESULT if path.is_dir() else path for path in paths]
    if len({path.resolve() for path in resolved}) < len(resolved):
        raise UsageError("one result is given twice; give different ones")
    folders = [path.parent for path in resolved]
    short = [str(path) if path.parent.name else path.name for path in folders]
    if len(set(short)) == len(short) and all(path.name == RESULT for path in resolved):
        return short
    return [str(path) for path in resolved]
