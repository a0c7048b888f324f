"""`smidgen ls`: the deltas on the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import Switches, answer, answer_dry_run, log, quiet_stdout
from smidgen.evaluation.metric_table import aligned
from smidgen.files.names import excerpt
from smidgen.hub.config import ListConfig

DESCRIPTION = """List the deltas on the Hugging Face hub, by their tag.

examples:
  smidgen ls
  smidgen ls owner --base glyphs --json"""
COLUMNS = ("repo", "base", "method", "trainable", "classes", "changed")


def run(argv: Sequence[str]) -> None:
    """Parse, ask, answer."""
    parsed = parse(
        read_request("ls", argv, positional="owner"),
        {"list": ListConfig},
        switches=Switches,
        description=DESCRIPTION,
    )
    config, switches = parsed["list"], parsed["switches"]
    if switches.dry_run:
        answer_dry_run([config], {}, as_json=switches.json)
        return
    from smidgen.hub.listing import list_deltas

    with quiet_stdout():
        document = list_deltas(config)
    if document["more"]:
        log(f"there are more than {config.limit:,} on the hub; --limit looks at more")
    answer(document, lines_of(document["deltas"]), None, as_json=switches.json)


def lines_of(deltas: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table, or that there is nothing."""
    if not deltas:
        return ["no deltas there"]
    return aligned([COLUMNS, *([_cell(row, name) for name in COLUMNS] for row in deltas)])


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name] if name != "base" else row["base_model"] or row["base"]
    if name == "repo" and row["private"]:
        return f"{value} (private)"
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else excerpt(value)
