"""`train`: images and settings in, a delta out; and what is drawn and measured meanwhile."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from smidgen.api.sampling import draw_images
from smidgen.core.delta import Delta
from smidgen.data.layouts import resolve_split
from smidgen.diffusion.sampler import sample_generator
from smidgen.errors import UsageError, closest
from smidgen.evaluation.run import SAMPLE_RECORD, evaluate
from smidgen.files.names import file_part
from smidgen.methods import Method, configure
from smidgen.models.base import Base
from smidgen.models.conditioner import Conditions
from smidgen.models.pretrained import load_base
from smidgen.training.config import TrainingConfig
from smidgen.training.loop import Evaluator
from smidgen.training.network import class_names, class_prompts
from smidgen.training.recipe import check_recipe
from smidgen.training.run import RunConfig, fine_tune
from smidgen.training.state import writing

RUNS = Path("runs")

# Of the samples drawn during a training: quick to draw, and the same ones every time.
PREVIEW_STEPS = 20
PREVIEW_SAMPLER = "dpm++"
GRID_IMAGES = 64
METRIC_IMAGES = 512
PREVIEW_BATCH = 64


def train(
    base: Base | str | Path,
    data: str | Path,
    *,
    layout: str = "folder",
    split: str | None = None,
    method: str = "difffit",
    method_config: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    image_size: int | None = None,
    resize: Literal["crop", "resize"] = "crop",
    flip: bool = False,
    max_bad_share: float = 0.05,
    cache_dir: str | Path | None = None,
    force: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Delta:
    """Fine-tune `base` to a folder of images and return the delta, which also lies in
    `output`/delta.safetensors.

    `data`: a sub-folder for each class, or images of one class; or what `layout` says (food-101,
    webdataset, hf and others: data/layouts), of which `split` is read, None its default.
    `method`: one, or several as "difffit+lora". `method_config`: its own options, those of several
    by method: {"lora": {"rank": 4}}. `output`: the run's folder, None
    runs/<data>-<method> (with a number if that holds another run). A run that was interrupted goes
    on, a finished one is not repeated; with other settings in the same folder `force` starts over.
    `settings`: those of TrainingConfig, such as steps, lr, batch_size, seed; for a base that reads
    prompts, `prompt` makes those of the classes.

    Raises: UsageError for a setting that makes no sense or a folder of another run; SmidgenError
        for images that cannot be used, a loss that is not finite, a disk that refuses; Interrupted
        after Ctrl-C.
    """
    training = training_config(settings)
    _, config = method_and_config(method, method_config)
    resolve_split(layout, split)
    # a data set of the hub has no folder here
    if layout != "hf" and not Path(data).is_dir():
        raise UsageError(f"no such folder of images: {data}")
    if not isinstance(base, Base):
        base = load_base(base, image_size=image_size)
    run = RunConfig(
        data=Path(data),
        layout=layout,
        split=split,
        method=method,
        method_config=config,
        image_size=image_size or base.image_size,
        resize=resize,
        flip=flip,
        max_bad_share=max_bad_share,
        training=training,
    )
    folder = _free_folder(run, base) if output is None else Path(output)
    cache = None if cache_dir is None else Path(cache_dir)
    return fine_tune(
        base,
        run,
        folder,
        force=force,
        cache_dir=cache,
        progress=progress,
        make_evaluators=lambda delta, target: _evaluators(base, delta, run, target, cache),
    )


def training_config(settings: Mapping[str, Any]) -> TrainingConfig:
    """The settings as a TrainingConfig.

    Raises: UsageError for an unknown name, with the closest one, or a value that makes no sense.
    """
    known = [field.name for field in dataclasses.fields(TrainingConfig)]
    for name in settings:
        if name not in known:
            raise UsageError(f'unknown setting "{name}"{closest(name, known)}')
    return TrainingConfig(**settings)


def method_and_config(name: str, values: Mapping[str, Any] | None) -> tuple[Method, Any]:
    """A method, or a combination such as "difffit+lora", and its Config with these values, of a
    combination by method.

    Raises: UsageError for an unknown method, option or value.
    """
    return configure(name, values)


def _free_folder(run: RunConfig, base: Base) -> Path:
    """The first of runs/<data>-<method>, -2, -3 ... that is free or holds this very run."""
    name = file_part(f"{run.data.resolve().name}-{run.method}")
    for number in itertools.count(1):
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        if not folder.exists():
            return folder
        try:
            check_recipe(folder, run.recipe(base))
        except UsageError:
            continue
        return folder
    raise AssertionError("unreachable")


def _evaluators(
    base: Base, delta: Delta, run: RunConfig, folder: Path, cache_dir: Path | None
) -> list[Evaluator]:
    """The grid and the metrics of a training, as far as its settings ask for them."""
    if not (run.training.sample_every or run.training.metrics_every):
        return []
    classes = class_names(base, delta)
    conditions = base.conditions(class_prompts(base, delta))

    def draw_grid(step: int) -> dict[str, float]:
        path = folder / "samples" / f"step-{step}.png"
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            grid(_preview(base, conditions, len(classes), GRID_IMAGES)).save(path)
        return {}

    def measure(step: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="smidgen-") as place:
            shown = {}
            for number, image in enumerate(_preview(base, conditions, len(classes), METRIC_IMAGES)):
                Image.fromarray(image).save(Path(place) / f"{number:06d}.png")
                shown[f"{number:06d}.png"] = classes[number % len(classes)]
            record = json.dumps({"images": shown})
            (Path(place) / SAMPLE_RECORD).write_text(record, encoding="utf-8")
            result = evaluate(
                place,
                run.data,
                layout=run.layout,
                split=run.split,
                device=base.device,
                cache_dir=cache_dir,
            )
        found = result["metrics"].items()
        means = {name: v["mean"] if isinstance(v, Mapping) else v for name, v in found}
        return {name: value for name, value in means.items() if value is not None}

    wanted = {draw_grid: run.training.sample_every, measure: run.training.metrics_every}
    return [Evaluator(every=every, run=function) for function, every in wanted.items() if every]


def _preview(base: Base, conditions: Conditions, num_classes: int, count: int) -> NDArray[np.uint8]:
    """uint8 images (N, H, W, 3) of the base as it is now, the classes in turn; seed 0."""
    count = max(count, num_classes)
    parts = []
    for start in range(0, count, PREVIEW_BATCH):
        numbers = range(start, min(start + PREVIEW_BATCH, count))
        parts.append(
            draw_images(
                base,
                torch.tensor([number % num_classes for number in numbers]),
                [sample_generator(0, number) for number in numbers],
                null_label=num_classes,
                conditions=conditions,
                steps=PREVIEW_STEPS,
                sampler=PREVIEW_SAMPLER if base.objective != "flow" else None,
            )
        )
    return torch.cat(parts).permute(0, 2, 3, 1).cpu().numpy()


def grid(images: NDArray[np.uint8]) -> Image.Image:
    """Images (N, H, W, 3) side by side in about as many rows as columns."""
    num_columns = math.ceil(math.sqrt(len(images)))
    num_rows = math.ceil(len(images) / num_columns)
    _, height, width, _ = images.shape
    sheet = np.full((num_rows * height, num_columns * width, 3), 255, np.uint8)
    for number, image in enumerate(images):
        row, column = divmod(number, num_columns)
        top, left = row * height, column * width
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)
