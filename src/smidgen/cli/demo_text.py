"""`smidgen demo --text`: the shipped base that reads prompts learns one drawing from five pictures;
prompts before and after in pictures and numbers.

The training's settings are in demo_text.toml beside this file; it is trained as `smidgen train` and
measured as `smidgen study` does it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from smidgen.cli import train
from smidgen.cli.arguments import Request, read_request
from smidgen.cli.clock import Clock
from smidgen.cli.options import answer, answer_dry_run, check_output_folder, log, quiet_stdout
from smidgen.data.embedded_sets import SUBJECTS, classes_of_set, unpack
from smidgen.errors import UsageError, closest
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.schemas import MOST_RESULT_BYTES
from smidgen.files.checks import check_integer, check_number
from smidgen.files.reading import Unreadable, fit, read_json
from smidgen.files.run_files import RESULT
from smidgen.files.settings import read_recipe
from smidgen.files.writing import write_json
from smidgen.sampling.config import MeasuredSampling
from smidgen.study.request import Request as StudyRequest

if TYPE_CHECKING:
    from smidgen.models.base import Base

RECIPE = Path(str(files("smidgen.cli") / "demo_text.toml"))
BATCH = 64

DESCRIPTION = """Teach the shipped base that reads prompts one drawing, and show before and after.

Every flag of train is one here too. The same command again resumes, or says that it is finished.

examples:
  smidgen demo --text
  smidgen demo --text --subject castle-line --output runs/castle"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDemoOptions:
    """Which subject, and how the samples of the comparison are drawn, alike before and after."""

    subject: str = "dog-line"
    """One of the subjects that ship; its class is the first word."""
    num_images: int = 52
    """Samples of the subject, image i of prompt i mod 13."""
    sample_steps: int = 25
    """Steps of DPM-Solver++(2M)."""
    guidance: float = 4.0
    """Scale of classifier-free guidance."""

    def __post_init__(self) -> None:
        known = classes_of_set(SUBJECTS)
        if self.subject not in known:
            raise UsageError(f'no subject "{self.subject}" ships{closest(self.subject, known)}')
        check_integer("num_images", self.num_images)
        check_integer("sample_steps", self.sample_steps)
        check_number("guidance", self.guidance)

    @property
    def sampling(self) -> MeasuredSampling:
        """How the samples are drawn."""
        return MeasuredSampling(
            num_images=self.num_images,
            steps=self.sample_steps,
            sampler="dpm++",
            guidance=self.guidance,
            batch_size=BATCH,
        )


class Trained(msgspec.Struct):
    """Of the delta."""

    trainable: int
    share: float
    delta_bytes: int


class Seconds(msgspec.Struct):
    """Of the run."""

    train: float
    total: float


class Numbers(msgspec.Struct):
    """Of the evaluation, with the delta."""

    clip_i: float
    clip_t: float
    ink_and_ground: float
    drift: float


class Beside(msgspec.Struct):
    """The same without the delta, and of real pictures."""

    clip_i_of_base: float
    clip_i_of_reference: float
    clip_t_of_base: float
    ink_and_ground_of_base: float
    drift_of_other_noise: float | None = None  # of one sample a prompt


class TextDemoResult(msgspec.Struct):
    """What the summary shows of the demo's result.json."""

    training: Trained
    metrics: Numbers
    baselines: Beside
    settings: dict[str, Any]  # compared as a whole with those that are asked for
    seconds: Seconds


def run(argv: Sequence[str]) -> None:
    """Parse, check, do all parts, answer."""
    clock = Clock()
    parsed = parse_demo(read_request("demo --text", argv))
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
    answer(document, summary(document, folder), folder, as_json=parsed["switches"].json)


def parse_demo(request: Request) -> dict[str, Any]:
    """The flags of train and of the demo, with demo_text.toml below a recipe of the user's."""
    output = Path(str(request.peek("output", "runs/demo-text")))
    subject = str(request.peek("subject", TextDemoOptions.subject))
    places = {"output": str(output), "data": str(output / SUBJECTS / subject)}
    values = {**places, **read_recipe(RECIPE), **class_of(subject), **request.values}
    request = dataclasses.replace(request, recipe=request.recipe or RECIPE, values=values)
    return train.parse_train(request, description=DESCRIPTION, demo=TextDemoOptions)


def class_of(subject: str) -> dict[str, str]:
    """The settings that say what a shipped subject is one of."""
    name = subject.rpartition("-")[0]
    return {
        "class_name": name,
        "prompt": f"a picture of {'an' if name[:1] in 'aeiou' else 'a'} {{class}}",
    }


def finished_result(folder: Path, parsed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished demo with these very settings, None if there is none."""
    try:
        document = read_json(folder / RESULT, dict[str, Any], MOST_RESULT_BYTES)
        fit(document, TextDemoResult)
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
    """All parts; training goes on where it was stopped."""
    from smidgen.study.measuring import loaded

    options, folder = parsed["run"], parsed["run"].output
    with clock.part("unpack", "unpacking the subjects"):
        unpack(SUBJECTS, folder / SUBJECTS)
    with clock.part("load", f'loading the base "{parsed["base"].base}"'):
        base = loaded(parsed["base"])
    with clock.part("train", f"training with {options.method}"):
        trained = train.train(base, options, force=parsed["switches"].force)
        log(f"trained {trained['trainable']:,} parameters: {trained['share']:.2%} of the base")
    (folder / RESULT).unlink(missing_ok=True)  # training refuses other settings before
    with clock.part("evaluate", "drawing and measuring prompts with the delta and without"):
        measured = evaluate(parsed, base)
    with clock.part("pictures", "drawing the page"):
        from smidgen.cli.demo_page import write_page

        write_page(base, options.data, folder, parsed["demo"].sampling)
    document = {
        **{name: measured[name] for name in ("metrics", "baselines", "by_prompt", "protocol")},
        "warnings": measured["warnings"],
        "training": {k: v for k, v in trained.items() if k != "classes"},
        "settings": settings_of_demo(parsed),
        "seconds": clock.result(),
    }
    write_json(document, folder / RESULT)
    return document


def evaluate(parsed: Mapping[str, Any], base: Base) -> dict[str, Any]:
    """The evaluation of the run as a study does it."""
    from smidgen.study.measuring import measure

    config = parsed["run"]
    request = StudyRequest(
        base=parsed["base"],
        config=config,
        sampling=parsed["demo"].sampling,
        evaluation=EvaluationConfig(cache_dir=config.cache_dir),
        data=str(config.data),
        reference=None,
    )
    return measure(config.output, base, request, told=True)


def summary(document: Mapping[str, Any], folder: Path) -> list[str]:
    """Three lines for a person."""
    from smidgen.evaluation.personalisation import share_of_way

    training, now, beside = document["training"], document["metrics"], document["baselines"]
    floor, ceiling = beside["clip_i_of_base"], beside["clip_i_of_reference"]
    way = share_of_way(now["clip_i"], floor, ceiling)
    other_noise = beside.get("drift_of_other_noise")
    return [
        f"trained {training['trainable']:,} parameters ({training['share']:.2%} of the base) in "
        f"{document['seconds']['train']:.0f} s, {document['seconds']['total']:.0f} s in all; "
        f"delta.safetensors has {training['delta_bytes']:,} bytes",
        f"CLIP-I to the subject {floor:.2f} -> {now['clip_i']:.2f} (real pictures {ceiling:.2f}"
        + (f", {way:.0%} of the way" if way is not None else "")
        + f"), CLIP-T {beside['clip_t_of_base']:.2f} -> {now['clip_t']:.2f}, ink and ground of the "
        f"prompt {beside['ink_and_ground_of_base']:.0%} -> {now['ink_and_ground']:.0%}, drift of "
        f"other prompts {now['drift']:.2f}"
        + (f" (other noise {other_noise:.2f})" if other_noise is not None else ""),
        f"look at {folder / 'page.png'}",
    ]
