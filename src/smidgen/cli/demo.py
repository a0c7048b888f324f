"""`smidgen demo`: the shipped base learns Greek letters; before and after in pictures and numbers.

The training's settings are in demo.toml beside this file; everything goes through the functions of
the other verbs.
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
from smidgen.evaluation.schemas import MOST_RESULT_BYTES
from smidgen.files.checks import check_integer, check_number
from smidgen.files.reading import Unreadable, fit, read_json
from smidgen.files.settings import read_recipe, settings_of
from smidgen.files.writing import write_json
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.folder import fill_folder, standing_of

if TYPE_CHECKING:
    from smidgen.models.base import Base
    from smidgen.training.config import RunConfig

RECIPE = Path(str(files("smidgen.cli") / "demo.toml"))
CURVE_IMAGES = BATCH = 96
TEXT = "--text"

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

    num_images: int = 480
    """Samples in each folder."""
    sample_steps: int = 20
    """Steps of DPM-Solver++(2M)."""
    guidance: float = 1.5
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
    """The flags of train and of the demo, with demo.toml below a recipe of the user's."""
    from smidgen.methods import resolve

    output = Path(str(request.peek("output", "runs/demo")))
    recipe = read_recipe(RECIPE)
    name = str(request.peek("method", recipe["method"]))
    if name != recipe["method"]:  # then the options of the recipe's method mean nothing
        others = settings_of(resolve(recipe["method"]).config)
        recipe = {key: value for key, value in recipe.items() if key not in others}
    places = {"output": str(output), "data": str(output / SET / "train")}
    values = {**places, **recipe, **request.values}
    request = dataclasses.replace(request, recipe=request.recipe or RECIPE, values=values)
    return train.parse_train(request, description=DESCRIPTION, demo=DemoOptions)


def finished_result(folder: Path, parsed: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result of a finished demo with these very settings, None if there is none."""
    try:
        document = read_json(folder / "result.json", dict[str, Any], MOST_RESULT_BYTES)
        fit(document, show.DemoResult)
    except Unreadable:
        return None
    if document["settings"] != settings_of_demo(parsed):
        return None
    from smidgen.training.recipe import steps_done

    return document if steps_done(folder) >= parsed["run"].training.steps else None


def settings_of_demo(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the result depends on, as JSON."""
    values = train.resolved(parsed) | dataclasses.asdict(parsed["demo"])
    return json.loads(json.dumps(values, default=str))


def perform(parsed: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    """All parts; each leaves its files, so that a stopped demo goes on where it was."""
    options, folder = parsed["run"], parsed["run"].output
    with clock.part("unpack", "unpacking the images of Greek letters"):
        unpack(SET, folder / SET)
    with clock.part("load", f'loading the base "{parsed["base"].base}"'):
        base = parsed["base"].load()
    with clock.part("train", f"training with {options.method}"):
        trained = train.train(base, options, force=parsed["switches"].force)
        log(f"trained {trained['trainable']:,} parameters: {trained['share']:.2%} of the base")
    (folder / "result.json").unlink(missing_ok=True)  # training refuses other settings before
    with clock.part("sample_before", f"drawing {parsed['demo'].num_images} samples before"):
        draw(parsed, base, "before", start_delta(options, base))
    with clock.part("sample_after", f"drawing {parsed['demo'].num_images} samples after"):
        from smidgen.core.delta import Delta

        draw(parsed, base, "after", Delta.load(options.output / "delta.safetensors"))
    with clock.part("evaluate", "measuring both against unseen font families"):
        before, after = (measure_samples(folder / name) for name in ("before", "after"))
    with clock.part("curve", "measuring the deltas kept on the way"):
        between = agreement_on_the_way(parsed, base)
        first, last = (result["metrics"]["class_agreement"] for result in (before, after))
        agreement = {0: first, **between, options.training.steps: last}
    with clock.part("pictures", "drawing the pictures"):
        show.write_grid(folder, trained["classes"])
        show.write_curves(folder, agreement, parsed["demo"].guidance)
    document = {
        **_compared(before, after),
        "class_agreement_by_step": agreement,
        "training": {k: v for k, v in trained.items() if k != "classes"},
        "settings": settings_of_demo(parsed),
        "seconds": clock.result(),
    }
    write_json(document, folder / "result.json")
    return document


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of two evaluations, and the protocol that they share."""
    shared = {k: v for k, v in after["protocol"].items() if before["protocol"][k] == v}
    return {
        "before": {**before["metrics"], **before.get("baselines", {})},
        "after": {**after["metrics"], **after.get("baselines", {})},
        "protocol": shared,
        "warnings": sorted({*before["warnings"], *after["warnings"]}),
    }


def start_delta(config: RunConfig, base: Base) -> Any:
    """The delta as training begins with it: new rows in the label table, nothing learned."""
    from smidgen.data.folder import scan
    from smidgen.methods.build import build_delta
    from smidgen.training.randomness import generator_for

    classes = scan(config.data, decode=False).classes
    generator = generator_for(config.training.seed, "delta")
    return build_delta(config.method, base, config.method_config, classes, generator)


def sampling_of(demo: DemoOptions, num_images: int) -> SamplingConfig:
    """How so many samples are drawn."""
    return SamplingConfig(
        num_images=num_images,
        steps=demo.sample_steps,
        sampler="dpm++",
        guidance=demo.guidance,
        batch_size=BATCH,
    )


def draw(parsed: Mapping[str, Any], base: Base, name: str, delta: Any) -> None:
    """Fill the folder `name` with samples, unless it holds these already."""
    from smidgen.sampling.draw import prepare

    demo, folder = parsed["demo"], parsed["run"].output / name
    drawing = prepare(base, sampling_of(demo, demo.num_images), delta=delta)
    settings = drawing.facts() | {"delta_sha256": fingerprint_of(delta)}
    if standing_of(folder, settings, force=True) != "finished":
        fill_folder(drawing, folder, settings)


def fingerprint_of(delta: Any) -> str:
    """A hash of the delta's values: the sampling record tells by it which delta was used."""
    import hashlib

    total = hashlib.sha256()
    for name, value in sorted(delta.state_dict().items()):
        total.update(name.encode())
        total.update(value.detach().cpu().float().numpy().tobytes())
    return total.hexdigest()


def measure_samples(folder: Path) -> dict[str, Any]:
    """A sample folder against the shipped statistics of unseen font families."""
    from smidgen import api

    return api.evaluate(folder, shipped_reference(SET), device="auto")


def agreement_on_the_way(parsed: Mapping[str, Any], base: Base) -> dict[int, float]:
    """Class agreement of a few samples of each delta that training kept before the last step."""
    import torch

    from smidgen.core.delta import Delta
    from smidgen.evaluation.features import load_extractor
    from smidgen.evaluation.metrics import class_agreement
    from smidgen.sampling.draw import prepare
    from smidgen.training.state import step_of

    demo, found = parsed["demo"], {}
    extractor = load_extractor("glyphs", base.device)
    for path in (parsed["run"].output / "deltas").glob("step-*.safetensors"):
        if step_of(path) >= parsed["run"].training.steps:
            continue
        drawing = prepare(base, sampling_of(demo, CURVE_IMAGES), delta=Delta.load(path))
        numbers, images = next(drawing.batches())
        classes = drawing.labels.names
        head = extractor.head_for(set(classes))
        assert head is not None, "the shipped classifier knows the shipped letters"
        _, logits = extractor.read(torch.from_numpy(images).permute(0, 3, 1, 2))
        intended = [extractor.heads[head].index(drawing.name(number)) for number in numbers]
        predicted = logits[head].argmax(1).cpu()
        found[step_of(path)] = class_agreement(predicted, torch.tensor(intended))
    return dict(sorted(found.items()))
