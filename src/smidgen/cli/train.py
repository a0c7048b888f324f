"""`smidgen train`: a folder of images and a base to RUN/delta.safetensors.

The rule for running again into the same folder (resume, finished, refuse) is in training/recipe.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smidgen.cli.arguments import Request, parse, read_request
from smidgen.cli.options import (
    OutputSwitches,
    answer,
    answer_dry_run,
    check_images,
    check_output_folder,
    quiet_stdout,
)
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.reading import read_json
from smidgen.files.run_files import DELTA, REPORT
from smidgen.files.settings import SWITCH, flatten
from smidgen.models.chosen import TrainedBase, check_base_name
from smidgen.training.config import RunConfig, TrainingConfig

if TYPE_CHECKING:
    from smidgen.models.base import Base

DESCRIPTION = """Fine-tune a base to a folder of images: a sub-folder for each class.

The same command again resumes the run, or says that it is finished; with more --steps it goes on.
The flags under "method" are those of the chosen --method. Several processes train as one with their
batches would: torchrun --nproc-per-node 8 -m smidgen.cli train ...

examples:
  smidgen train --base glyphs --data photos/ --method difffit --steps 400 --output runs/photos
  smidgen train recipes/difffit-food101.toml --data food-101 --layout food-101 --split train"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSwitches(OutputSwitches):
    """How to run and how to answer; never part of a recipe."""

    time: bool = dataclasses.field(default=False, metadata=SWITCH)
    """With --dry-run: load the base and time a few steps, for an estimate of the whole."""

    def __post_init__(self) -> None:
        if self.time and not self.dry_run:
            raise UsageError("--time tells how long a training would take; give --dry-run too")


GROUPS: Mapping[str, type] = {"base": TrainedBase, "run": RunConfig, "training": TrainingConfig}


def run(argv: Sequence[str]) -> None:
    """Parse, check, train, answer."""
    parsed = parse_train(read_request("train", argv))
    config, switches = parsed["run"], parsed["switches"]
    if not switches.dry_run or switches.time:
        check_base_name(parsed["base"].base)
    check_paths(config)
    if switches.dry_run:
        with quiet_stdout():
            facts = plan(parsed["base"], config, switches)
        answer_dry_run(configs_of(parsed), facts, as_json=switches.json)
        if facts.get("refusal") is not None:
            raise UsageError(facts["refusal"])
        return
    with quiet_stdout():
        document = train(parsed["base"].load(), config, force=switches.force)
    summary = (
        f"trained {document['trainable']:,} parameters, {document['share']:.2%} of the base, "
        f"in {document['steps']:,} steps"
    )
    answer(document, [summary], Path(document["delta"]), as_json=switches.json)


def parse_train(request: Request, description: str = DESCRIPTION, **others: type) -> dict[str, Any]:
    """What flags and recipe say: the base, the run with all that it holds, the switches and the
    `others`; the flags of the method are those of the one that is chosen.

    Raises: UsageError for an unknown method, and as `parse`.
    """
    from smidgen.methods import resolve

    method = resolve(request.peek("method", "difffit"))
    groups = {**others, **GROUPS, "method": method.config}
    parsed = parse(request, groups, switches=TrainSwitches, description=description)
    config, training = parsed.pop("method"), parsed.pop("training")
    parsed["run"] = dataclasses.replace(parsed["run"], method_config=config, training=training)
    return parsed


def configs_of(parsed: Mapping[str, Any]) -> list[Any]:
    """The configurations of a parsed command line whose fields are its settings."""
    run = parsed["run"]
    return [parsed["base"], run, run.training, run.method_config]


def check_paths(config: RunConfig) -> None:
    """Raise UsageError unless the images are there and the output can be written."""
    if not config.has_prompts_alone:
        check_images(config.data, config.layout, config.split)
    if config.class_data is not None:
        check_images(config.class_data, "folder", None)
    check_output_folder(config.output)


def train(base: Base, config: RunConfig, *, force: bool = False) -> dict[str, Any]:
    """Train, and tell what was trained."""
    from smidgen.api.training import run as train_run

    delta = train_run(base, config, force=force, progress=True)
    path = config.output / DELTA
    report: dict[str, Any] = {}
    with contextlib.suppress(SmidgenError):
        report = read_json(config.output / REPORT, dict[str, Any])
    total = report.get("total")
    if not isinstance(total, int) or total < 1:
        total = sum(parameter.numel() for parameter in base.denoiser.parameters())
    return {
        "delta": str(path),
        "delta_bytes": path.stat().st_size,
        "method": config.method,
        "classes": list(delta.provenance.classes),
        "trainable": delta.num_parameters(),
        "total": total,
        "share": delta.num_parameters() / total,
        "steps": report.get("steps", config.training.steps),
        "run": report,
    }


def plan(base: TrainedBase, config: RunConfig, switches: TrainSwitches) -> dict[str, Any]:
    """What the run would find, train and need."""
    from smidgen.api.planning import plan_run, time_steps
    from smidgen.models.calling import device_of
    from smidgen.progress import counting_bar

    device, missing = base.device, None
    try:
        device = device_of(base.device)
    except UsageError as error:  # what a training would take there is counted all the same
        missing = str(error)
    with counting_bar("reading", progress=True) as report:
        facts = plan_run(
            base.base,
            config,
            given=base.given(),
            image_size=base.image_size,
            device=device,
            offload=base.offload,
            shard=base.shard,
            force=switches.force,
            progress=report,
        )
    facts["refusal"] = facts["refusal"] or missing
    found = facts.pop("images")
    if switches.time and facts["refusal"] is None:
        facts["time"] = time_steps(base.load(), config, len(found.classes))
    if switches.json:
        return {"images": found.as_json(), **facts}
    known = {name: fact for name, fact in facts.items() if fact is not None}
    return {"images": tuple(found.lines()), **known}


def resolved(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a parsed command line by name."""
    return flatten(*configs_of(parsed))
