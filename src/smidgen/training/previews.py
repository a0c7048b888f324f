"""What is drawn and measured while a training goes on: grids of samples, and their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smidgen.core.sharding import group_of
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.run import measure_drawing
from smidgen.files.writing import write_png
from smidgen.models.base import Base
from smidgen.models.labels import Labels
from smidgen.models.prompts import DREAMBOOTH
from smidgen.processes import is_main
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import Drawing, prepare
from smidgen.training.captions import a_few
from smidgen.training.config import RunConfig
from smidgen.training.loop import Evaluator
from smidgen.training.objective import Task
from smidgen.training.state import AGAIN

# quick to draw, and the same ones every time
STEPS = 20
GRID_IMAGES, GRID_CAPTIONS = 64, 16
METRIC_IMAGES = 512
SUBJECT_IMAGES = 32  # against the few of a subject, as the adapter paper measures
BATCH = 64


def evaluators_of(base: Base, config: RunConfig, task: Task) -> list[Evaluator]:
    """The grid and the metrics of a run, as far as its settings ask for them."""
    training, of_classes = config.training, task.choices is None
    of_subject = config.task == DREAMBOOTH
    measured = EvaluationConfig(
        features=training.metrics_features,
        layout=config.layout,
        split=config.split,
        device=str(base.device),
        cache_dir=config.cache_dir,
    )

    def shown(count: int) -> Labels:
        """The labels, of captions so many of them, as encoders under training read them now."""
        labels = task.labels if of_classes else a_few(task.labels, count, task.shown)
        return labels if task.texts is None else task.texts.fixed(labels)

    def draw_grid(step: int) -> dict[str, float]:
        # nothing in it waits for the others, unless they have parts of the weights
        if not is_main() and group_of(base.denoiser) is None:
            return {}
        labels = shown(GRID_CAPTIONS)
        count = GRID_CAPTIONS if of_subject else GRID_IMAGES
        images = [part for _, part in _drawing(base, labels, count).batches()]
        if is_main():
            path = config.output / "samples" / f"step-{step}.png"
            write_png(grid(np.concatenate(images)), path, AGAIN)
        return {}

    def measure(step: int) -> dict[str, float]:
        count = SUBJECT_IMAGES if of_subject else METRIC_IMAGES
        drawing = _drawing(base, shown(METRIC_IMAGES), count)
        result = measure_drawing(drawing, config.data, measured, of_classes=of_classes)
        found: dict[str, float | None] = {}
        for name, value in result["metrics"].items():
            if isinstance(value, Mapping):
                found |= {name: value["mean"], f"{name}_std": value.get("std")}
            else:
                found[name] = value
        return {name: value for name, value in found.items() if value is not None}

    wanted = {draw_grid: training.sample_every, measure: training.metrics_every}
    return [Evaluator(every=every, run=function) for function, every in wanted.items() if every]


def _drawing(base: Base, labels: Labels, count: int) -> Drawing:
    """So many images of the base as it is now, or one of each label if there are more of them."""
    sampling = SamplingConfig(
        num_images=max(count, len(labels.names)),
        steps=STEPS,
        sampler=base.process.preview_sampler,
        batch_size=BATCH,
    )
    return prepare(base, sampling, labels=labels)


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
