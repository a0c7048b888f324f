"""`smidgen fold`: a delta written into a copy of its base; the arithmetic is in core/fold.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_file,
    check_output_folder,
    quiet_stdout,
)
from smidgen.errors import UsageError
from smidgen.files.standing import START_OVER
from smidgen.models.chosen import BaseOptions

DESCRIPTION = """Write a delta into a copy of the base's weights; the base itself stays as it is.

examples:
  smidgen fold --base glyphs --delta runs/demo/delta.safetensors --format dit --output a.pt
  smidgen fold --base glyphs --delta runs/demo/delta.safetensors --format diffusers --output a/
  smidgen fold --base sd-folder --delta cat.safetensors --format single-file --output cat-sd.safetensors"""  # noqa: E501


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """What to write."""

    delta: Path
    """A delta.safetensors."""
    format: Literal["dit", "diffusers", "single-file"]
    """dit: the original .pt; diffusers: a folder; single-file: SD, SD3, Flux in original names."""
    output: Path
    """File (dit, single-file) or folder (diffusers) to write."""

    def __post_init__(self) -> None:
        if self.format == "single-file" and self.output.suffix != ".safetensors":
            raise UsageError(
                f"{self.output}: a single file must end in .safetensors; give such an output, or "
                "--format dit for the .pt of a DiT"
            )
        if self.format != "diffusers" and self.output.is_dir():
            raise UsageError(f"{self.output} is a folder; give the name of a file")
        if self.format == "diffusers" and self.output.is_file():
            raise UsageError(f"{self.output} is a file; give a folder")
        if self.output.exists() and self.output.resolve() == self.delta.resolve():
            raise UsageError(f"{self.output} is the delta itself; give another output")


def run(argv: Sequence[str]) -> None:
    """Parse, check, fold, answer."""
    parsed = parse(
        read_request("fold", argv),
        {"base": BaseOptions, "fold": FoldOptions},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    base_options, options, switches = parsed["base"], parsed["fold"], parsed["switches"]
    check_file(options.delta, "delta")
    if options.output.exists() and Path(base_options.base).exists():
        base = Path(base_options.base).resolve()
        if base == options.output.resolve():
            raise UsageError(f"{options.output} is the base itself, which is never changed")
    check_output_folder(options.output.parent, options.output)
    is_empty = options.output.is_dir() and not any(options.output.iterdir())
    if options.output.exists() and not switches.force and not is_empty:
        raise UsageError(f"{options.output} exists; give another output, or {START_OVER}")
    if switches.dry_run:
        answer_dry_run([base_options, options], {}, as_json=switches.json)
        return
    with quiet_stdout():
        document = fold(base_options, options)
    answer(document, [], Path(document["output"]), as_json=switches.json)


def fold(base_options: BaseOptions, options: FoldOptions) -> dict[str, Any]:
    """Load both, check that they belong together, fold and write."""
    from smidgen import api
    from smidgen.core.delta import Delta

    delta = Delta.load(options.delta)
    base = base_options.as_trained(delta).load()
    delta.check_base(base.fingerprint, base.name)
    written = api.fold(base, delta, format=options.format, output=options.output)
    return {
        "output": str(written),
        "format": options.format,
        "base": base.name,
        "classes": list(delta.provenance.classes),
    }
