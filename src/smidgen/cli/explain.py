"""`smidgen explain`: pictures of what deltas learned; what they show is in explanation/."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_input,
    check_output_folder,
    log,
    quiet_stdout,
)
from smidgen.errors import SmidgenError
from smidgen.explanation.config import DOCUMENT, ExplanationConfig
from smidgen.files.reading import read_json, sha256_of
from smidgen.files.settings import flatten
from smidgen.files.standing import standing
from smidgen.models.chosen import DEVICES, check_base_name

NOT_COMPARED = ("output", "device", "runs")

DESCRIPTION = """Show what deltas of one base learned, side by side, as PNG, SVG and explain.json.

differences: a picture is noised, and its noise predicted with the subject's token and without (or
  with a class and without): the map of the difference, from little noise to much
attention: how much of its cross-attention each place gives to the token (bases that read prompts)
edits: how much each edit changes what passes its site, by block and by site

examples:
  smidgen explain runs/dog-lora runs/dog-adapter --output explained/dog
  smidgen explain runs/greek --class-name alpha --output explained/greek
  smidgen explain runs/fox --prompt "a red fox" --without "a fox" --word red --output explained/"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplainOptions:
    """What to look at, and where the pictures go."""

    runs: tuple[Path, ...]
    """Folders of runs, or delta files, of one base."""
    output: Path
    """Folder for the pictures and explain.json."""
    base: str | None = None
    """The base; none: that of the first run's recipe, or of the delta's header."""
    device: DEVICES = "auto"
    """auto: the accelerator if there is one."""

    def __post_init__(self) -> None:
        if self.base is not None:
            check_base_name(self.base)


class Record(msgspec.Struct):
    """Of explain.json, what tells whether it is that of a request."""

    request: dict[str, Any]


def run(argv: Sequence[str]) -> None:
    """Parse, check, look, answer."""
    parsed = parse(
        read_request("explain", argv, positional="runs"),
        {"place": ExplainOptions, "config": ExplanationConfig},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    options, config, switches = parsed["place"], parsed["config"], parsed["switches"]
    for source in options.runs:
        check_input(source, "run or delta")
    check_output_folder(options.output)
    request = request_of(options, config)
    before = request_before(options.output / DOCUMENT)
    found = standing(
        options.output, "pictures", before, request, finished=True, force=switches.force
    )
    if switches.dry_run:
        answer_dry_run([options, config], {}, as_json=switches.json)
        return
    if found == "finished" and not switches.force:
        log(f"{options.output} holds these pictures already; --force draws them again")
        document = read_json(options.output / DOCUMENT, dict[str, Any])
    else:
        with quiet_stdout():
            document = explain(options, config, request)
    answer(document, lines_of(document), options.output, as_json=switches.json)


def request_of(options: ExplainOptions, config: ExplanationConfig) -> dict[str, Any]:
    """What the pictures depend on, as JSON: the deltas by their content.

    Raises: UsageError for what is no run or delta.
    """
    from smidgen.api.evaluation import delta_of
    from smidgen.api.explaining import check_sources

    check_sources(options.runs)
    values = {name: v for name, v in flatten(options, config).items() if name not in NOT_COMPARED}
    return values | {"deltas": [sha256_of(delta_of(source)) for source in options.runs]}


def request_before(path: Path) -> dict[str, Any] | None:
    """The request of what is there, None where nothing is that could be told from it."""
    try:
        return read_json(path, Record).request
    except SmidgenError:
        return None


def explain(
    options: ExplainOptions, config: ExplanationConfig, request: dict[str, Any]
) -> dict[str, Any]:
    """Look, and write what was found."""
    from smidgen.api.evaluation import Drawn
    from smidgen.api.explaining import look_at_runs, write_explanation
    from smidgen.progress import counting_bar

    with counting_bar("looking", progress=True) as report:
        found = look_at_runs(options.runs, config, Drawn(base=options.base), options.device, report)
    write_explanation(found, options.output, request)
    return {**found.document(), "request": request}


def lines_of(document: dict[str, Any]) -> list[str]:
    """A line for each delta: how much the prediction differs, and the share of the attention."""
    lines = []
    for one in document["deltas"]:
        relative = one["difference"]["relative"]
        text = f"{one['name']}: predictions differ by {sum(relative) / len(relative):.1%}"
        if one["attention"] is not None:
            shares = [share for row in one["attention"]["shares"] for share in row]
            word = one["attention"]["word"]
            text += f', "{word}" has {sum(shares) / len(shares):.1%} of the attention'
        lines.append(text)
    return lines
