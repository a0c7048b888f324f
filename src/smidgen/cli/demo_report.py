"""What the demo shows of a finished run: grid.png, curves.png and three lines of summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from smidgen.cli import pictures
from smidgen.cli.pictures import Panel
from smidgen.evaluation.schemas import Spread
from smidgen.files.writing import write_png
from smidgen.sampling.folder import read_record

SET = "greek"
COLUMNS = 24


class Trained(msgspec.Struct):
    """Of the delta."""

    trainable: int
    share: float
    delta_bytes: int


class Measured(msgspec.Struct):
    """Of the samples before or after."""

    kid: Spread
    fd: float
    class_agreement: float
    class_agreement_by_chance: float | None = None
    class_agreement_of_reference: float | None = None


class Sampled(msgspec.Struct):
    """How many images were measured."""

    num_images: int


class Seconds(msgspec.Struct):
    """Of the run."""

    train: float
    total: float


class DemoResult(msgspec.Struct):
    """What the summary shows of the demo's result.json."""

    training: Trained
    before: Measured
    after: Measured
    protocol: Sampled
    settings: dict[str, Any]  # compared as a whole with those that are asked for
    seconds: Seconds


def write_grid(folder: Path, classes: Sequence[str]) -> None:
    """grid.png: the same seeds before and after, and real letters, in each column."""
    small = [name for name in classes if not name.startswith("capital-")][:COLUMNS]
    rows: dict[str, list[Image.Image]] = {"base at\nthe start": [], "base\n+ delta": []}
    for label, name in zip(rows, ("before", "after"), strict=True):
        by_class: dict[str, str] = {}
        record = read_record(folder / name)
        for file, shown in (record.images if record else {}).items():
            by_class.setdefault(shown, file)
        rows[label] = [Image.open(folder / name / by_class[letter]) for letter in small]
    rows["real, from\nunseen fonts"] = [
        Image.open(_spread(folder / SET / "test" / letter, number))
        for number, letter in enumerate(small)
    ]
    title = "A base that knew only Latin letters, before and after learning Greek"
    write_png(pictures.image_grid(rows, small, title=title), folder / "grid.png")


def _spread(folder: Path, number: int) -> Path:
    """An image of the folder, another font for each number."""
    found = sorted(folder.glob("*.png"))
    return found[7 * number % len(found)]


def write_curves(folder: Path, agreement: Mapping[int, float], guidance: float) -> None:
    """curves.png: the losses from the run's log, and the class agreement by step."""
    from smidgen.training.journal import read_log

    lines = [record for _, record in read_log(folder / "log.jsonl")]

    def curve(name: str) -> list[tuple[float, float]]:
        return [
            (line["step"], line[name]) for line in lines if isinstance(line.get(name), int | float)
        ]

    losses = {
        "training, smoothed": pictures.smoothed(curve("loss"), weight=0.98),
        "held out": curve("validation_loss"),
    }
    panels = [
        Panel(title="Loss", curves={name: line for name, line in losses.items() if line}),
        Panel(
            title="Class agreement of samples",
            curves={f"guidance {guidance:g}": sorted(agreement.items())},
            percent=True,
            from_zero=True,
        ),
    ]
    pictures.chart(panels, x_label="step", path=folder / "curves.png")


def summary(document: Mapping[str, Any], folder: Path) -> list[str]:
    """Three lines for a person."""
    training, before, after = document["training"], document["before"], document["after"]
    baselines = {
        "by chance": after.get("class_agreement_by_chance"),
        "real letters": after.get("class_agreement_of_reference"),
    }
    beside = "".join(f"; {name} {v:.0%}" for name, v in baselines.items() if v is not None)
    count, guidance = document["protocol"]["num_images"], document["settings"]["guidance"]
    return [
        f"trained {training['trainable']:,} parameters ({training['share']:.2%} of the base) in "
        f"{document['seconds']['train']:.0f} s, {document['seconds']['total']:.0f} s in all; "
        f"delta.safetensors has {training['delta_bytes']:,} bytes",
        f"kernel distance (KID) {before['kid']['mean']:.2f} -> {after['kid']['mean']:.2f}, Frechet "
        f"distance {before['fd']:.1f} -> {after['fd']:.1f}, class agreement "
        f"{before['class_agreement']:.0%} -> {after['class_agreement']:.0%} "
        f"({count} samples, guidance {guidance:g}{beside})",
        f"look at {folder / 'grid.png'} and {folder / 'curves.png'}",
    ]
