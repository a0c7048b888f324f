"""`smidgen evaluate`: a run, a delta or a folder of images against a reference.

What is measured and how is in evaluation/; how the samples of a run are drawn in api/evaluation.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_images,
    check_input,
    check_output_file,
    log,
    quiet_stdout,
)
from smidgen.cli.records import default_output, finished_result, state_of
from smidgen.data.embedded_sets import locate_reference
from smidgen.errors import UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.metric_table import metric_help, result_lines
from smidgen.evaluation.names import DEFAULT, check_names
from smidgen.files.checks import check_number
from smidgen.files.run_files import DELTA, RECIPE
from smidgen.files.settings import flatten, settings_of
from smidgen.files.standing import START_OVER
from smidgen.files.writing import write_json
from smidgen.models.chosen import check_base_name
from smidgen.models.names import BasePrecision
from smidgen.models.positions import Positions
from smidgen.processes import is_main
from smidgen.sampling.config import UNUSUAL, MeasuredSampling, SamplingConfig
from smidgen.sizes import ImageSize

NOT_COMPARED = ("output", "statistics", "device", "offload", "batch_size", "cache_dir")

DESCRIPTION = f"""Measure a run, a delta or a folder of images against a reference.

Of a run and a delta, samples are drawn and measured without writing them. With torchrun, several
processes share the work: torchrun --nproc-per-node 8 -m smidgen.cli evaluate ...

metrics (* if none are named):
{metric_help()}

Of a personalisation (train --task dreambooth) the subject is judged in fixed contexts, with the
base itself and real pictures beside each number, and how far other prompts drift.

examples:
  smidgen evaluate runs/photos --reference photos-test/ --num-images 10000
  smidgen evaluate runs/owl --sampler dpm++ --steps 25 --guidance 4
  smidgen evaluate samples/ --reference photos/ --features inception,dinov2 --metrics fd,kid,recall
  smidgen evaluate samples/ --reference statistics.npz --output samples/result.json --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to measure against what, and where the result goes."""

    images: Path
    """A run's folder, a delta's file, or a folder of images (any program's; or a .npz with arr_0).
    Classes of images: sub-folders, or what sampling recorded."""
    reference: Path | None = None
    """Folder of real images, or a .npz with mu and sigma, or with images as arr_0; or the name of a
    set that ships (latin, greek, ...): unseen fonts of it; none: the pictures of the subject that a
    personalisation was trained on."""
    output: Path | None = None
    """Where the result goes; none: result.json in the folder of the run or of the images."""
    statistics: Path | None = None
    """Also write the statistics of the reference to this .npz, to be a reference later."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DrawnOptions:
    """The base with which the samples of a run or a delta are drawn."""

    base: str | None = None
    """The base; none: that of the run's recipe, or of the delta's header."""
    codec: str | None = None
    """Codec (VAE) folder or hub id; none: the recipe's, else the base's own."""
    image_size: ImageSize | None = None
    """Size of the images in pixels, a number or WIDTHxHEIGHT; none: as trained."""
    positions: Positions | None = None
    """Of a DiT at another size than its own: extend or stretch; none: as trained."""
    frequency_shift: float | None = None
    """Shift of the timestep frequencies; none: the recipe's, else that of the base."""
    base_precision: BasePrecision | None = None
    """Number format in which the base's weights are kept; none: the recipe's, else as a pipeline's
    files have them."""
    offload: bool = False
    """Keep the weights of the base's blocks in the memory of the machine, as train does."""

    def __post_init__(self) -> None:
        if self.base is not None:
            check_base_name(self.base)
        check_number("frequency_shift", self.frequency_shift)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One command line of evaluate."""

    place: EvaluateOptions
    config: EvaluationConfig
    drawn: DrawnOptions
    sampling: MeasuredSampling

    @property
    def configs(self) -> list[Any]:
        """Those whose fields are its settings."""
        return [self.place, self.config, self.drawn, self.sampling]


GROUPS: Mapping[str, type] = {
    "place": EvaluateOptions,
    "config": EvaluationConfig,
    "drawn": DrawnOptions,
    "sampling": MeasuredSampling,
}


def run(argv: Sequence[str]) -> None:
    """Parse, check, measure, answer."""
    parsed = parse(
        read_request("evaluate", argv, positional="images"),
        GROUPS,
        switches=OutputSwitches,
        description=DESCRIPTION,
    )
    switches = parsed.pop("switches")
    request = with_reference(Request(**parsed))
    check_paths(request)
    images, statistics = request.place.images, request.place.statistics
    output = request.place.output or default_output(images)
    check_output_file(output)
    asked = asked_of(request)
    document = None if switches.force else finished_result(output, asked)
    if statistics is not None and statistics.exists() and not switches.force:
        if document is None:
            raise UsageError(f"{statistics} exists; give another file, or {START_OVER}")
        log(f"{statistics} is there already; --force writes it again")
        statistics = None
    if switches.dry_run:
        answer_dry_run(request.configs, delta_facts(images), as_json=switches.json)
        return
    with quiet_stdout():
        if document is not None:
            log(f"{output} already holds this result; --force measures again")
        else:
            document = measure(request)
            if not is_images(images):  # by its name, whatever it was asked for by
                asked["sampler"] = document["protocol"]["sampling"]["sampler"]
            document["request"] = asked
        if statistics is not None:
            save_statistics(request, statistics)
    if is_main():
        write_json(document, output)
        for warning in document.get("warnings", ()):
            log(f"warning: {warning}")
        answer(document, result_lines(document), output, as_json=switches.json)


def with_reference(request: Request) -> Request:
    """With the pictures of the subject as the reference where none is given. Raises: UsageError."""
    place = request.place
    if place.reference is not None:
        return request
    check_input(place.images, "run, delta or folder of images")
    if is_images(place.images):
        raise UsageError(
            "missing --reference: a folder of real images, or a .npz (smidgen evaluate --help)"
        )
    from smidgen.api.evaluation import own_reference

    reference, config = own_reference(place.images, request.config)
    return dataclasses.replace(
        request, place=dataclasses.replace(place, reference=reference), config=config
    )


def check_paths(request: Request) -> None:
    """Everything that the paths and flags tell before any work. Raises: UsageError."""
    place, config = request.place, request.config
    assert place.reference is not None, "a request that is checked has its reference"
    check_names(config.features, config.metrics, config.prompt)
    check_input(place.images, "run, delta or folder of images")
    if config.layout != "folder":
        check_images(place.reference, config.layout, config.split)
    else:
        check_input(locate_reference(place.reference), "reference")
    if is_images(place.images):
        if (place.images / RECIPE).is_file():
            raise UsageError(f"{place.images} is a run without {DELTA}: train it to its end first")
        drawing = flatten(request.drawn, request.sampling)
        defaults = settings_of(DrawnOptions, MeasuredSampling)
        given = [name for name, value in drawing.items() if value != defaults[name].default]
        if given:
            raise UsageError(
                f"{defaults[given[0]].flag} is about drawing samples, and {place.images} holds "
                "images already; leave it out, or give a run or a delta"
            )
    if place.statistics is not None:
        if not place.reference.is_dir():
            raise UsageError("--statistics needs a folder of images as the reference")
        if "," in (config.features or DEFAULT):
            raise UsageError("--statistics are of one kind of features; name one")
        check_output_file(place.statistics)


def is_images(path: Path) -> bool:
    """Whether the path holds images, and is no run or delta."""
    return path.suffix == ".npz" or (path.is_dir() and not (path / DELTA).is_file())


def asked_of(request: Request) -> dict[str, Any]:
    """What the result depends on: the settings, and a mark of the state of both inputs."""
    usual = {n: getattr(SamplingConfig(), n) for n in UNUSUAL}  # results from before do not say
    values = {
        name: value
        for name, value in flatten(*request.configs).items()
        if name not in NOT_COMPARED and not (name in usual and value == usual[name])
    }
    images = request.place.images
    delta = images / DELTA
    values["images_state"] = state_of(delta if delta.is_file() else images)
    reference = request.place.reference
    values["reference_state"] = None if reference is None else state_of(locate_reference(reference))
    return json.loads(json.dumps(values, default=str))


def measure(request: Request) -> dict[str, Any]:
    """The result document."""
    from smidgen.api import evaluation
    from smidgen.progress import counting_bar

    place, drawn = request.place, evaluation.Drawn(**vars(request.drawn))
    sampling = dataclasses.replace(request.sampling, batch_size=request.config.batch_size)
    with counting_bar("measuring", progress=is_main()) as progress:
        return evaluation.measure(
            place.images, place.reference, request.config, drawn, sampling, progress
        )


def save_statistics(request: Request, path: Path) -> None:
    """Write the statistics of the reference, which `measure` left in the cache.

    Every process must call it, as they wait for each other over the cache; the main one writes.
    """
    from smidgen.evaluation.plan import make_plan
    from smidgen.evaluation.reference import reference_statistics
    from smidgen.evaluation.statistics import write_statistics
    from smidgen.models.calling import device_of

    config, reference = request.config, request.place.reference
    assert reference is not None, "statistics are of a reference that is given"
    plan = make_plan(config, device_of(config.device))
    keep = {plan.first.name: plan.needs(plan.first, "features")}
    known = reference_statistics(reference, [plan.first], config, keep_features=keep)
    if is_main():
        write_statistics(known[plan.first.name], path)


def delta_facts(images: Path) -> dict[str, Any]:
    """Size of the delta from which samples would be drawn; nothing for images."""
    if is_images(images):
        return {}
    from smidgen.cli.sample import delta_facts

    return delta_facts(images / DELTA if images.is_dir() else images)
