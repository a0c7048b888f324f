"""`smidgen evaluate`: a folder of images against a reference, as evaluation/ measures it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    DEVICES,
    Switches,
    answer,
    answer_dry_run,
    at_least,
    check_input,
    check_output_file,
    log,
    quiet_stdout,
    resolve_device,
    write_json,
)
from smidgen.errors import UsageError

DESCRIPTION = """Measure images against a reference: Frechet distance and class agreement.

examples:
  smidgen evaluate samples/ --reference photos/ --features glyphs --json
  smidgen evaluate samples/ --reference statistics.npz --output samples/result.json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure."""

    images: tyro.conf.Positional[Path]
    """Folder of images. Their classes: sub-folders, or what sampling recorded."""
    reference: Path
    """Folder of real images, or a .npz with mu and sigma."""
    features: str = "glyphs"
    """The feature extractor."""
    batch_size: int = 64
    """Images at a time."""
    cache_dir: Path | None = None
    """Where statistics of reference folders are kept; none: the cache folder of this machine."""
    device: DEVICES = "auto"
    """auto: the accelerator if there is one."""
    output: Path | None = None
    """Also write the document to this file."""
    statistics: Path | None = None
    """Also write the statistics of the reference folder to this .npz, to be a reference later."""

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)


def run(argv: Sequence[str]) -> None:
    """Parse, check, measure, answer."""
    parsed = parse(
        read_request("evaluate", argv, positional="images"),
        {"evaluation": EvaluateOptions},
        switches=Switches,
        description=DESCRIPTION,
    )
    options, switches = parsed["evaluation"], parsed["switches"]
    check_input(options.images, "folder")
    check_input(options.reference, "reference")
    if options.statistics is not None and not options.reference.is_dir():
        raise UsageError("--statistics needs a folder of images as the reference")
    for path in (options.output, options.statistics):
        if path is not None:
            check_output_file(path)
            if path.exists() and not switches.force:
                raise UsageError(f"{path} exists; --force replaces it")
    if switches.dry_run:
        answer_dry_run([options], {}, as_json=switches.json)
        return
    with quiet_stdout():
        document = measure(options)
        if options.statistics is not None:
            save_statistics(options, options.statistics)
    if options.output is not None:
        write_json(document, options.output)
    for warning in document["warnings"]:
        log(f"warning: {warning}")
    answer(document, summary(document), options.output, as_json=switches.json)


def save_statistics(options: EvaluateOptions, path: Path) -> None:
    """Write the statistics of the reference folder, which `measure` left in the cache."""
    from smidgen.evaluation.features import load_extractor
    from smidgen.evaluation.reference import folder_statistics, write_statistics

    extractor = load_extractor(options.features, resolve_device(options.device))
    known = folder_statistics(options.reference, extractor, cache_dir=options.cache_dir)
    write_statistics(known, path)


def measure(options: EvaluateOptions) -> dict[str, Any]:
    """The result document."""
    from smidgen.evaluation.run import evaluate
    from smidgen.training.journal import counting_bar

    with counting_bar("reading", progress=True) as progress:
        return evaluate(
            options.images,
            options.reference,
            features=options.features,
            batch_size=options.batch_size,
            device=resolve_device(options.device),
            cache_dir=options.cache_dir,
            progress=progress,
        )


def summary(document: Mapping[str, Any]) -> list[str]:
    """The numbers with what they depend on, for a person."""
    metrics, protocol = document["metrics"], document["protocol"]
    known = protocol["num_reference"] or "an unknown number of"
    beside = f"{protocol['features']} features, {protocol['num_images']} images against {known}"
    lines = [f"Frechet distance  {metrics['fd']:.2f}   ({beside})"]
    if metrics["class_agreement"] is not None:
        baselines = document["baselines"]
        real = baselines["class_agreement_of_reference"]
        beside = f"chance {baselines['class_agreement_by_chance']:.1%}"
        beside += f", reference {real:.1%}" if real is not None else ""
        lines.append(f"class agreement   {metrics['class_agreement']:.1%}   ({beside})")
    return lines
