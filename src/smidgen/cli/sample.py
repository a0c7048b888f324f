"""`smidgen sample`: one PNG an image, and sample.json, which says how they were made.

What is drawn and how is in sampling/: config.py, draw.py and folder.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_file,
    check_output_folder,
    log,
    quiet_stdout,
)
from smidgen.errors import SmidgenError
from smidgen.files.reading import read_json, sha256_of
from smidgen.files.settings import flatten
from smidgen.models.chosen import BaseOnDevice
from smidgen.models.names import EMBEDDED, shipped_names
from smidgen.sampling.config import LoadedSampling
from smidgen.sampling.folder import (
    SampleRecord,
    fill_folder,
    read_record,
    standing_of,
)

NOT_COMPARED = ("output", "batch_size", "device", "delta")  # these do not change the images

DESCRIPTION = """Draw images from a base, with or without a delta.

examples:
  smidgen sample --base glyphs --classes all --num-images 64 --output samples/
  smidgen sample --base glyphs --delta runs/demo/delta.safetensors --classes alpha,beta
      --guidance 4 --sampler dpm++ --steps 20 --output samples/
  smidgen sample --base stabilityai/sdxl --prompt "a red fox" "a blue fox" --output foxes/"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """With what, and where to."""

    delta: Path | None = None
    """A delta.safetensors; none: the base as it is."""
    output: Path
    """Folder for the images."""


def run(argv: Sequence[str]) -> None:
    """Parse, check, draw, answer."""
    parsed = parse(
        read_request("sample", argv),
        {"base": BaseOnDevice, "sampling": LoadedSampling, "place": SampleOptions},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    base_options, config, options = parsed["base"], parsed["sampling"], parsed["place"]
    switches = parsed["switches"]
    if options.delta is not None:
        check_file(options.delta, "delta")
    check_output_folder(options.output)
    whole = config.edits == "all"  # a part of a delta may have other classes
    if whole and not config.prompt and (known := known_early(base_options.base, options.delta)):
        config.chosen(known)
    settings = settings_of_samples(base_options, config, options)
    standing = standing_of(options.output, settings, force=switches.force)
    if switches.dry_run:
        facts = delta_facts(options.delta) if options.delta is not None else {}
        answer_dry_run([base_options, config, options], facts, as_json=switches.json)
        return
    if standing == "finished":
        record = read_record(options.output)
        assert record is not None, "a finished folder has its record"
        log(f"{options.output} already holds these {len(record.images)} images")
    else:
        with quiet_stdout():
            record = draw(base_options, config, options, settings)
    document = {"output": str(options.output), **msgspec.to_builtins(record)}
    answer(document, [], options.output, as_json=switches.json)


def known_early(base: str, delta: Path | None) -> list[str]:
    """The classes that can be drawn, where a small file tells them before torch loads, else none.

    Whatever is odd about that file is for the loading to say.
    """
    try:
        if delta is not None:
            with delta.open("rb") as file:
                header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 1 << 24)))
            described = json.loads(header["__metadata__"]["smidgen"])
            found = described["classes"] or described["training"]["prompts"]["classes"]
        else:
            folder = Path(base) if base not in shipped_names() else EMBEDDED / base
            found = read_json(folder / "config.json", dict[str, Any])["class_names"]
    except (
        SmidgenError,
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return []
    good = isinstance(found, list) and all(isinstance(name, str) for name in found)
    return found if good else []


def settings_of_samples(
    base_options: BaseOnDevice, config: LoadedSampling, options: SampleOptions
) -> dict[str, Any]:
    """What the images depend on, as JSON: the delta by its content."""
    values = flatten(base_options, options) | config.facts()
    settings = {name: value for name, value in values.items() if name not in NOT_COMPARED}
    settings["delta_sha256"] = None if options.delta is None else sha256_of(options.delta)
    return settings


def draw(
    base_options: BaseOnDevice,
    config: LoadedSampling,
    options: SampleOptions,
    settings: dict[str, Any],
) -> SampleRecord:
    """Load the base in the asked precision and the delta, and fill the folder.

    Raises: UsageError for an unknown class; SmidgenError for a delta of another base.
    """
    from smidgen import api
    from smidgen.models.calling import DTYPES
    from smidgen.progress import counting_bar
    from smidgen.sampling.draw import prepare

    # before the base, which may take long
    delta = api.Delta.load(options.delta) if options.delta is not None else None
    base = base_options.as_trained(delta).load(dtype=DTYPES[config.precision])
    drawing = prepare(base, config, delta=delta)
    with counting_bar("sampling", progress=True) as report:
        return fill_folder(drawing, options.output, settings, report)


def delta_facts(path: Path) -> dict[str, Any]:
    """Size of a delta file."""
    from smidgen.core.delta import Delta

    delta = Delta.load(path)
    return {"delta_parameters": delta.num_parameters(), "delta_bytes": path.stat().st_size}
