"""`smidgen demo`: the shipped base learns Greek letters; before and after in pictures and numbers.

It is one run of the study in demo.toml beside this file, in a folder of its own: trained, drawn and
measured as `smidgen study` does it. What is here is what is told of it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smidgen.cli import demo_report as show
from smidgen.cli import train
from smidgen.cli.arguments import Request, read_request
from smidgen.cli.clock import Clock
from smidgen.cli.demo_report import SET
from smidgen.cli.options import (
    answer,
    answer_dry_run,
    check_output_folder,
    log,
    quiet_stdout,
)
from smidgen.data.embedded_sets import shipped_reference, unpack
from smidgen.errors import UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.schemas import MOST_RESULT_BYTES
from smidgen.files.checks import check_integer, check_number
from smidgen.files.reading import Unreadable, fit, read_json
from smidgen.files.run_files import RESULT
from smidgen.files.settings import make, settings_of
from smidgen.files.writing import write_json
from smidgen.sampling.config import MeasuredSampling
from smidgen.study.design import STUDY, read_design
from smidgen.study.request import Request as StudyRequest

if TYPE_CHECKING:
    from smidgen.study.measuring import Evaluations

RECIPE = Path(str(files("smidgen.cli") / "demo.toml"))
TEXT, AGREEMENT = "--text", "class_agreement"
# flags of the demo that are settings of how samples are drawn
FLAGS = {"num_images": "num_images", "sample_steps": "steps", "guidance": "guidance"}

DESCRIPTION = """Fine-tune the shipped base to Greek letters and show before and after, in minutes.

Every flag of train is one here too. The same command again resumes, or says that it is finished.

With --text the shipped base that reads prompts learns one drawing instead (smidgen demo --text
--help).

examples:
  smidgen demo
  smidgen demo --text
  smidgen demo --output runs/slow --steps 2000 --num-images 960"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """How the samples for the comparison are drawn, alike before and after."""

    num_images: int
    """Samples in each folder."""
    sample_steps: int
    """Steps of DPM-Solver++(2M)."""
    guidance: float
    """Scale of classifier-free guidance."""

    def __post_init__(self) -> None:
        check_integer("num_images", self.num_images, least=48)
        check_integer("sample_steps", self.sample_steps)
        check_number("guidance", self.guidance)


def run(argv: Sequence[str]) -> None:
    """Parse, check, do all parts, answer; with --text the other demo."""
    if TEXT in argv:
        from smidgen.cli import demo_text

        demo_text.run([word for word in argv if word != TEXT])
        return
    clock = Clock()
    parsed = parse_demo(read_request("demo", argv))
    folder = parsed["run"].output
    check_output_folder(folder)
    if parsed["switches"].dry_run:
        configs = [*train.configs_of(parsed), parsed["demo"]]
        answer_dry_run(configs, {}, as_json=parsed["switches"].json)
        return
    document = None if parsed["switches"].force else finished_result(folder, parsed)
    if document is not None:
        log(f"{folder} holds a finished demo; --force starts over")
    else:
        with quiet_stdout():
            document = perform(parsed, clock)
    answer(document, show.summary(document, folder), folder, as_json=parsed["switches"].json)


def parse_demo(request: Request) -> dict[str, Any]:
    """The flags of train and of the demo, below them a recipe of the user's, and below that
    demo.toml; under "table" what its study measures.

    Raises: UsageError for a recipe that is a study itself.
    """
    from smidgen.methods import resolve

    if STUDY in request.values:
        raise UsageError(
            f"{request.recipe} is a study, for smidgen study run; the demo is one of its own, and "
            "takes flags and recipes of smidgen train"
        )
    design = read_design(RECIPE)
    recipe, drawn = dict(design.fixed), design.table.sampling
    output = Path(str(request.peek("output", "runs/demo")))
    name = str(request.peek("method", recipe["method"]))
    if name != recipe["method"]:  # then the options of the recipe's method mean nothing
        others = settings_of(resolve(recipe["method"]).config)
        recipe = {key: value for key, value in recipe.items() if key not in others}
    places = {"output": str(output), "data": str(output / SET / "train")}
    shown = {flag: drawn[name] for flag, name in FLAGS.items()}
    values = {**places, **recipe, **shown, **request.values}
    request = dataclasses.replace(request, recipe=request.recipe or RECIPE, values=values)
    parsed = train.parse_train(request, description=DESCRIPTION, demo=DemoOptions)
    return parsed | {"table": design.table}


def finished_result(folder: Path, parsed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished demo with these very settings, None if there is none."""
    try:
        document = read_json(folder / RESULT, dict[str, Any], MOST_RESULT_BYTES)
        fit(document, show.DemoResult)
    except Unreadable:
        return None
    if document["settings"] != settings_of_demo(parsed):
        return None
    from smidgen.training.recipe import is_at_end

    training = parsed["run"].training
    return document if is_at_end(folder, training.steps, training.patience) else None


def settings_of_demo(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the result depends on, as JSON."""
    values = train.resolved(parsed) | dataclasses.asdict(parsed["demo"])
    return json.loads(json.dumps(values, default=str))


def perform(parsed: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """All parts; each leaves its files, so that a stopped demo goes on where it was."""
    from smidgen.study.measuring import evaluations, loaded

    config, folder = parsed["run"], parsed["run"].output
    with clock.part("unpack", "unpacking the images of Greek letters"):
        unpack(SET, folder / SET)
    with clock.part("load", f'loading the base "{parsed["base"].base}"'):
        base = loaded(parsed["base"])
    with clock.part("train", f"training with {config.method}"):
        trained = train.train(base, config, force=parsed["switches"].force)
        log(f"trained {trained['trainable']:,} parameters: {trained['share']:.2%} of the base")
    (folder / RESULT).unlink(missing_ok=True)  # training refuses other settings before
    found = evaluations(study_request(parsed), parsed["table"], folder, part=clock.part, told=True)
    agreement = {step: one["metrics"][AGREEMENT] for step, one in found.curve.items()}
    with clock.part("pictures", "drawing the pictures"):
        show.write_grid(folder, trained["classes"])
        show.write_curves(folder, agreement, parsed["demo"].guidance)
    document = {
        **compared(found),
        "class_agreement_by_step": agreement,
        "training": {k: v for k, v in trained.items() if k != "classes"},
        "settings": settings_of_demo(parsed),
        "seconds": clock.result(),
    }
    write_json(document, folder / RESULT)
    return document


def study_request(parsed: Mapping[str, Any]) -> StudyRequest:
    """The demo as a run of its study."""
    config, table = parsed["run"], parsed["table"]
    flags = {name: getattr(parsed["demo"], flag) for flag, name in FLAGS.items()}
    return StudyRequest(
        base=parsed["base"],
        config=config,
        sampling=make(MeasuredSampling, table.sampling | flags),
        evaluation=make(EvaluationConfig, table.evaluation),
        data=str(config.data),
        reference=shipped_reference(SET),
    )


def compared(found: Evaluations) -> dict[str, Any]:
    """The numbers before and after, and the protocol that they share."""
    before, after = found.before, found.after
    assert before is not None, "the study of the demo measures before"
    shared = {k: v for k, v in after["protocol"].items() if before["protocol"][k] == v}
    return {
        "before": {**before["metrics"], **before.get("baselines", {})},
        "after": {**after["metrics"], **after.get("baselines", {})},
        "protocol": shared,
        "warnings": sorted({*before["warnings"], *after["warnings"]}),
    }
