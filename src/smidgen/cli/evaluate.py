"""`smidgen evaluate`: a run, a delta or a folder of images against a reference.

What is measured and how is in evaluation/; how the samples of a run are drawn in api/evaluation.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.metric_table import metric_help, result_lines
from smidgen.cli.options import (
    DEVICES,
    LAYOUT_NAMES,
    PRECISIONS,
    OutputSwitches,
    answer,
    answer_dry_run,
    at_least,
    check_base_name,
    check_images,
    check_input,
    check_output_file,
    finite,
    log,
    quiet_stdout,
    resolve_device,
)
from smidgen.cli.records import DELTA, default_output, finished_result, state_of
from smidgen.data.embedded_sets import locate_reference
from smidgen.errors import UsageError
from smidgen.evaluation.names import PROMPT, check_names, split_names
from smidgen.files.settings import flatten
from smidgen.files.writing import write_json
from smidgen.processes import is_main

NOT_COMPARED = ("output", "statistics", "device", "batch_size", "cache_dir")

DESCRIPTION = f"""Measure a run, a delta or a folder of images against a reference.

Of a run and a delta, samples are drawn and measured without writing them. With torchrun, several
processes share the work: torchrun --nproc-per-node 8 -m smidgen.cli evaluate ...

metrics (* if none are named):
{metric_help()}

examples:
  smidgen evaluate runs/photos --reference photos-test/ --num-images 10000
  smidgen evaluate samples/ --reference photos/ --features inception,dinov2 --metrics fd,kid,recall
  smidgen evaluate samples/ --reference statistics.npz --output samples/result.json --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure."""

    images: Path
    """A run's folder, a delta's file, or a folder of images (any program's; or a .npz with arr_0).
    Classes of images: sub-folders, or what sampling recorded."""
    reference: Path
    """Folder of real images, or a .npz with mu and sigma, or with images as arr_0; or the name of a
    set that ships (latin, greek, ...): unseen fonts of it."""
    layout: LAYOUT_NAMES = "folder"
    """How the reference lies there, as for train."""
    split: str | None = None
    """Which part of the reference; none: the layout's default."""
    features: str = "glyphs"
    """Feature extractors with commas: glyphs, inception, dinov2, clip-b32, clip-l14."""
    metrics: str | None = None
    """Metrics with commas, see above; none: those with *, where they can be had."""
    resize: Literal["clean", "legacy"] | None = None
    """How inception's images are resized; none: clean."""
    weights: Path | None = None
    """The extractor's weights; none: where they are usually kept, else fetched once."""
    prompt: str = PROMPT
    """The text of a class, for metrics that compare with texts."""
    batch_size: int = 64
    """Images at a time."""
    cache_dir: Path | None = None
    """Where statistics of reference folders are kept; none: the cache folder of this machine."""
    device: DEVICES = "auto"
    """auto: the accelerator if there is one."""
    output: Path | None = None
    """Where the result goes; none: result.json in the folder of the run or of the images."""
    statistics: Path | None = None
    """Also write the statistics of the reference to this .npz, to be a reference later."""

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        check_names(self.features, self.metrics, self.prompt)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How the samples of a run or a delta are drawn."""

    base: str | None = None
    """The base; none: that of the run's recipe, or of the delta's header."""
    codec: str | None = None
    """Codec (VAE) folder or hub id; none: the recipe's, else the base's own."""
    image_size: int | None = None
    """Side of the images in pixels; none: as trained."""
    frequency_shift: float | None = None
    """Shift of the timestep frequencies; none: the recipe's, else that of the base."""
    num_images: int = 10_000
    """Samples in total, image i of class i mod K."""
    steps: int = 50
    """Sampling steps."""
    sampler: Literal["ddpm", "ddim", "dpm++", "euler"] | None = None
    """ddpm: ancestral, as in the papers; dpm++: DPM-Solver++(2M), good from 15 steps on; euler: for
    flow-matching bases; none: ddpm, or euler for those."""
    guidance: float = 1.5
    """Scale of classifier-free guidance, 1 is without; or what a base with the scale as an input
    (FLUX) is told."""
    guidance_channels: Literal["all", "first-three"] = "all"
    """first-three: as the code released with DiT does."""
    seed: int = 0
    """Image i depends on this and i only."""
    precision: PRECISIONS = "fp32"
    """Number format of the denoiser."""

    def __post_init__(self) -> None:
        if self.base is not None:
            check_base_name(self.base)
        for name in ("num_images", "steps"):
            at_least(name, getattr(self, name), 1)
        for name in ("guidance", "seed", "frequency_shift"):
            finite(name, getattr(self, name) or 0)
        if self.image_size is not None:
            at_least("image_size", self.image_size, 1)


def run(argv: Sequence[str]) -> None:
    """Parse, check, measure, answer."""
    parsed = parse(
        read_request("evaluate", argv, positional="images"),
        {"evaluation": EvaluateOptions, "drawing": DrawOptions},
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    options, drawing, switches = (parsed[name] for name in ("evaluation", "drawing", "switches"))
    check_paths(options, drawing)
    output = options.output or default_output(options.images)
    check_output_file(output)
    request = request_of(options, drawing)
    document = None if switches.force else finished_result(output, request)
    if options.statistics is not None and options.statistics.exists() and not switches.force:
        if document is None:
            raise UsageError(f"{options.statistics} exists; --force replaces it")
        log(f"{options.statistics} is there already; --force writes it again")
        options = dataclasses.replace(options, statistics=None)
    if switches.dry_run:
        answer_dry_run([options, drawing], delta_facts(options.images), as_json=switches.json)
        return
    with quiet_stdout():
        if document is not None:
            log(f"{output} already holds this result; --force measures again")
        else:
            document = measure(options, drawing)
            document["request"] = request | drawn_with(options.images, document)
        if options.statistics is not None:
            save_statistics(options, options.statistics)
    if is_main():
        write_json(document, output)
        for warning in document.get("warnings", ()):
            log(f"warning: {warning}")
        answer(document, result_lines(document), output, as_json=switches.json)


def check_paths(options: EvaluateOptions, drawing: DrawOptions) -> None:
    """Everything that the paths and flags tell before any work.

    Raises: UsageError.
    """
    check_input(options.images, "run, delta or folder of images")
    if options.layout != "folder":
        check_images(options.reference, options.layout, options.split)
    else:
        check_input(locate_reference(options.reference), "reference")
    if is_images(options.images):
        if (options.images / "recipe.toml").is_file():
            raise UsageError(
                f"{options.images} is a run without {DELTA}: train it to its end first"
            )
        given = [name for name, value in flatten(drawing).items() if value != _default(name)]
        if given:
            flag = given[0].replace("_", "-")
            raise UsageError(
                f"--{flag} is about drawing samples, and {options.images} holds images already; "
                "leave it out, or give a run or a delta"
            )
    if options.statistics is not None:
        if not options.reference.is_dir():
            raise UsageError("--statistics needs a folder of images as the reference")
        if "," in options.features:
            raise UsageError("--statistics are of one kind of features; name one")
        check_output_file(options.statistics)


def _default(name: str) -> Any:
    return DrawOptions.__dataclass_fields__[name].default


def is_images(path: Path) -> bool:
    """Whether the path holds images, and is no run or delta."""
    return path.suffix == ".npz" or (path.is_dir() and not (path / DELTA).is_file())


def request_of(options: EvaluateOptions, drawing: DrawOptions) -> dict[str, Any]:
    """What the result depends on: the settings, and a mark of the state of both inputs."""
    values = {n: v for n, v in flatten(options, drawing).items() if n not in NOT_COMPARED}
    delta = options.images / DELTA
    values["images_state"] = state_of(delta if delta.is_file() else options.images)
    values["reference_state"] = state_of(locate_reference(options.reference))
    return json.loads(json.dumps(values, default=str))


def drawn_with(images: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler of samples that were drawn here, by its name."""
    if is_images(images):
        return {}
    return {"sampler": document["protocol"]["sampling"]["sampler"]}


def measure(options: EvaluateOptions, drawing: DrawOptions | None = None) -> dict[str, Any]:
    """The result document; `drawing` None: as its defaults, if there is anything to draw."""
    from smidgen.api.evaluation import evaluate
    from smidgen.progress import counting_bar
    from smidgen.sampling.config import SamplingConfig

    drawing, more = drawing or DrawOptions(), {}
    if not is_images(options.images):
        names = ("num_images", "steps", "sampler", "guidance", "guidance_channels", "seed")
        values = {name: getattr(drawing, name) for name in (*names, "precision")}
        more["sampling"] = SamplingConfig(**values)
        for name in ("base", "codec", "image_size", "frequency_shift"):
            more[name] = getattr(drawing, name)
    with counting_bar("measuring", progress=is_main()) as progress:
        return evaluate(
            options.images,
            options.reference,
            features=options.features,
            metrics=None if options.metrics is None else split_names(options.metrics),
            batch_size=options.batch_size,
            device=resolve_device(options.device),
            cache_dir=options.cache_dir,
            weights=options.weights,
            resize=options.resize,
            layout=options.layout,
            split=options.split,
            prompt=options.prompt,
            progress=progress,
            **more,
        )


def save_statistics(options: EvaluateOptions, path: Path) -> None:
    """Write the statistics of the reference, which `measure` left in the cache.

    Every process must call it, as they wait for each other over the cache; the main one writes.
    """
    from smidgen.evaluation.plan import make_plan
    from smidgen.evaluation.reference import folder_statistics
    from smidgen.evaluation.statistics import write_statistics

    plan = make_plan(
        options.features,
        None if options.metrics is None else split_names(options.metrics),
        device=resolve_device(options.device),
        weights=options.weights,
        resize=options.resize,
    )
    known = folder_statistics(
        options.reference,
        plan.first,
        keep_features=plan.needs(plan.first, "features"),
        layout=options.layout,
        split=options.split,
        cache_dir=options.cache_dir,
    )
    if is_main():
        write_statistics(known, path)


def delta_facts(images: Path) -> dict[str, Any]:
    """Size of the delta from which samples would be drawn; nothing for images."""
    if is_images(images):
        return {}
    from smidgen.cli.sample import delta_facts

    return delta_facts(images / DELTA if images.is_dir() else images)
