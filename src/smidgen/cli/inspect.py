"""`smidgen inspect`: what a method would train, counted without weights; or what a delta holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    Switches,
    answer,
    answer_dry_run,
    at_least,
    check_base_name,
    fact_lines,
    quiet_stdout,
)
from smidgen.errors import UsageError, closest

DESCRIPTION = """Count what a method would train, without weights; or show what a delta holds.

examples:
  smidgen inspect DiT-XL/2 --num-classes 101 --method difffit --json
  smidgen inspect runs/photos/delta.safetensors"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What to look at."""

    model: tyro.conf.Positional[str]
    """An architecture (DiT-XL/2), a base (shipped name, folder, file, hub id) or a delta file."""
    num_classes: int | None = None
    """Classes to train; none: as many as the base has."""
    method: str = "difffit"
    """What would be trained: full, bitfit, difffit."""

    def __post_init__(self) -> None:
        if self.num_classes is not None:
            at_least("num_classes", self.num_classes, 1)
        if not self.model.startswith("DiT-"):
            check_base_name(self.model)


def run(argv: Sequence[str]) -> None:
    """Parse, count, answer."""
    from smidgen.methods import METHODS

    request = read_request("inspect", argv, positional="model")
    method = request.peek("method", "difffit")
    if method not in METHODS:
        raise UsageError(f'unknown method "{method}"{closest(str(method), METHODS)}')
    parsed = parse(
        request,
        {"inspection": InspectOptions, "method": METHODS[method].config},
        switches=Switches,
        description=DESCRIPTION,
    )
    options, switches = parsed["inspection"], parsed["switches"]
    if switches.dry_run:
        answer_dry_run([options, parsed["method"]], {}, as_json=switches.json)
        return
    with quiet_stdout():
        document = inspect(options, parsed["method"])
    answer(document, fact_lines(document), None, as_json=switches.json)


def inspect(options: InspectOptions, method_config: Any) -> dict[str, Any]:
    """The counts of a base and method, or the facts of a delta file."""
    from smidgen import api

    path = Path(options.model)
    if path.is_file() and is_delta(path):
        return delta_facts(path)
    return api.inspect(
        options.model,
        num_classes=options.num_classes,
        method=options.method,
        method_config=dataclasses.asdict(method_config),
    )


def is_delta(path: Path) -> bool:
    """Whether a safetensors file says that it is a delta."""
    from smidgen.core.delta import read_header
    from smidgen.errors import SmidgenError

    try:
        read_header(path)
    except SmidgenError:
        return False
    return True


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
