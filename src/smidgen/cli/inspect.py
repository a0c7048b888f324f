"""`smidgen inspect`: what a method would train, counted without weights; or what a delta holds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    Switches,
    answer,
    answer_dry_run,
    fact_lines,
    quiet_stdout,
)
from smidgen.files.checks import check_integer
from smidgen.models.chosen import check_base_name
from smidgen.models.names import is_architecture

DESCRIPTION = """Count what a method would train, without weights; or show what a delta holds.

examples:
  smidgen inspect DiT-XL/2 --num-classes 101 --method difffit --json
  smidgen inspect sd-1.4 --method adapter --width 256
  smidgen inspect runs/photos/delta.safetensors"""
COLUMNS = ("site", "edit", "shape", "times", "count")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What to look at."""

    model: str
    """An architecture (DiT-XL/2, sd-1.4, sd-1.5, sd-2.1, sdxl), a base (shipped name, folder of
    ours or of diffusers, file, hub id) or a delta file."""
    num_classes: int | None = None
    """Classes to train; none: as many as the base has, which for one with prompts is none."""
    method: str = "difffit"
    """What would be trained: full, bitfit, difffit, adaptformer, vpt, lora, adapter; or several,
    such as difffit+lora."""

    def __post_init__(self) -> None:
        check_integer("num_classes", self.num_classes)
        if not is_architecture(self.model):
            check_base_name(self.model)


def run(argv: Sequence[str]) -> None:
    """Parse, count, answer."""
    from smidgen.methods import resolve

    request = read_request("inspect", argv, positional="model")
    method = resolve(str(request.peek("method", "difffit")))
    parsed = parse(
        request,
        {"inspection": InspectOptions, "method": method.config},
        switches=Switches,
        description=DESCRIPTION,
    )
    options, switches = parsed["inspection"], parsed["switches"]
    if switches.dry_run:
        answer_dry_run([options, parsed["method"]], {}, as_json=switches.json)
        return
    with quiet_stdout():
        document = inspect(options, parsed["method"])
    answer(document, lines_of(document), None, as_json=switches.json)


def inspect(options: InspectOptions, method_config: Any) -> dict[str, Any]:
    """The counts of a base and method, or the facts of a delta file."""
    from smidgen import api
    from smidgen.core.file import is_delta

    path = Path(options.model)
    if path.is_file() and is_delta(path):
        return delta_facts(path)
    return api.inspect(
        options.model,
        num_classes=options.num_classes,
        method=options.method,
        method_config=dataclasses.asdict(method_config),
    )


def lines_of(document: Mapping[str, Any]) -> list[str]:
    """The facts, then the table of the trained tensors, one line for those that differ only in the
    numbers in their site's name, with how many they are and their count together.
    """
    facts = {key: value for key, value in document.items() if key not in ("tensors", "untouched")}
    facts = {key: value for key, value in facts.items() if value is not None}
    lines = table(document.get("tensors", ()))
    untouched = document.get("untouched", {})
    if untouched:
        # each a raw parameter of the network: no module's output, so no site
        lines += ["", "parameters that no site reaches:"]
        lines += [f"  {name}  {count:,}" for name, count in untouched.items()]
    return [*lines, *([""] if lines else ()), *fact_lines(facts)]


def table(tensors: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of the table, its columns aligned."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for row in tensors:
        site = " -> ".join(dict.fromkeys(re.sub(r"(?<=\.)\d+", "*", row["site"]).split(" -> ")))
        shape = " x ".join(map(str, row["shape"]))
        groups.setdefault((site, row["edit"], shape), []).append(row["count"])
    if not groups:
        return []
    cells = [COLUMNS]
    cells += [(*key, f"{len(counts)}", f"{sum(counts):,}") for key, counts in groups.items()]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    return ["  ".join(_aligned(row, widths)).rstrip() for row in cells]


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Words to the left, the two columns of numbers at the end to the right."""
    words, numbers = len(row) - 2, len(row)
    cells = [row[column].ljust(widths[column]) for column in range(words)]
    return cells + [row[column].rjust(widths[column]) for column in range(words, numbers)]


def delta_facts(path: Path) -> dict[str, Any]:
    """Where a delta comes from, and its size."""
    from smidgen.core.delta import Delta

    delta = Delta.load(path)
    provenance = dataclasses.asdict(delta.provenance)
    return {
        "trainable": delta.num_parameters(),
        "delta_bytes": path.stat().st_size,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in provenance.items()},
    }
