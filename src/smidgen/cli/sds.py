"""`smidgen sds`: score distillation of a relief; what that is, is in distillation/."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.explain import request_before
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_input,
    check_output_folder,
    log,
    quiet_stdout,
)
from smidgen.distillation.config import DOCUMENT, DistillationConfig
from smidgen.files.reading import read_json, sha256_of
from smidgen.files.settings import flatten
from smidgen.files.standing import standing
from smidgen.models.chosen import TrainedBase, check_base_name

NOT_COMPARED = ("output", "device", "delta")

DESCRIPTION = """Change a coloured relief until a base takes its views for a subject, and write
views.png, relief.safetensors and sds.json. An experiment, beyond the paper.

Score distillation: the relief is looked at from a side, noise is added, and the base, with a delta
acting in it, says how the view would be likelier. Nothing but heights and colours is trained.

examples:
  smidgen sds --base glyphs-text --delta runs/dog-lora --output relief/dog
  smidgen sds --base glyphs --class-name upper-a --steps 200 --output relief/a"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledDelta:
    """The delta that acts, and where the files go."""

    delta: Path | None = None
    """A delta's file or a run's folder; none: the base alone."""
    output: Path
    """Folder for the views, the relief and sds.json."""


def run(argv: Sequence[str]) -> None:
    """Parse, check, distill, answer."""
    parsed = parse(
        read_request("sds", argv),
        {"base": TrainedBase, "place": DistilledDelta, "config": DistillationConfig},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    base, place, config = parsed["base"], parsed["place"], parsed["config"]
    switches = parsed["switches"]
    check_base_name(base.base)
    if place.delta is not None:
        check_input(place.delta, "run or delta")
    check_output_folder(place.output)
    request = request_of(base, place, config)
    before = request_before(place.output / DOCUMENT)
    found = standing(place.output, "a relief", before, request, finished=True, force=switches.force)
    if switches.dry_run:
        answer_dry_run([base, place, config], {}, as_json=switches.json)
        return
    if found == "finished" and not switches.force:
        log(f"{place.output} holds this relief already; --force makes it again")
        document = read_json(place.output / DOCUMENT, dict[str, Any])
    else:
        with quiet_stdout():
            document = make_relief(base, place, config, request)
    answer(document, [line_of(document)], place.output, as_json=switches.json)


def request_of(
    base: TrainedBase, place: DistilledDelta, config: DistillationConfig
) -> dict[str, Any]:
    """What the relief depends on, as JSON: the delta by its content."""
    from smidgen.api.evaluation import delta_file

    settings = flatten(base, place, config)
    values = {name: value for name, value in settings.items() if name not in NOT_COMPARED}
    delta = None if place.delta is None else sha256_of(delta_file(place.delta))
    return values | {"delta_sha256": delta}


def make_relief(
    base: TrainedBase, place: DistilledDelta, config: DistillationConfig, request: dict[str, Any]
) -> dict[str, Any]:
    """Make the relief, and write it."""
    from smidgen.api.distilling import load_delta, write_distillation
    from smidgen.distillation.run import distill
    from smidgen.progress import counting_bar

    delta = load_delta(place.delta)
    loaded = base.as_trained(delta).load()
    with counting_bar("distilling", progress=True) as report:
        found = distill(loaded, delta, config, report)
    write_distillation(found, place.output, request)
    return {**found.document(), "request": request}


def line_of(document: dict[str, Any]) -> str:
    """What was made, and how much better the base predicts it as that than as nothing."""
    preference = document["preference"]
    return (
        f'a relief of "{document["shown"]}": the base prefers that to nothing by '
        f"{preference['after']:.1%} (before: {preference['before']:.1%})"
    )
