"""DiffFit from the shipped base to each shipped set: python bench/domains.py [--sets hebrew,...]

Trains, samples and measures one set after the other; writes bench/results/domains.json after each,
a grid of each in docs/images/domains/ and the table docs/domains.md. A set that is done is skipped.
Distances stand beside that of as many real images of the training families.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import smidgen
from smidgen.cli.pictures import image_grid
from smidgen.core.delta import Delta
from smidgen.data.embedded_sets import SETS, EmbeddedSet, load_set, unpack
from smidgen.evaluation.features import Extractor, load_extractor
from smidgen.evaluation.metrics import Gaussian, class_agreement, frechet_distance
from smidgen.evaluation.reference import read_statistics
from smidgen.evaluation.stream import accumulate, array_batches
from smidgen.files.settings import read_recipe
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.base import Base
from smidgen.training.randomness import generator_for

RECIPE = Path("recipes/difffit-glyphs.toml")
RESULTS = Path("bench/results/domains.json")
PICTURES = Path("docs/images/domains")
PAGE = Path("docs/domains.md")
PROTOCOL = {"num_samples": 500, "sampler": "ddpm", "steps": 50, "guidance": 1.5, "seed": 0}
COLUMNS = 24


def training_images(embedded: EmbeddedSet, count: int) -> np.ndarray:
    """`count` images (N, H, W, 3) of the training families, the classes in turn.

    A set with fewer gives all it has, and again from the start in other inks.
    """
    places = np.random.default_rng(0).permutation(np.flatnonzero(~embedded.is_test))
    labels = embedded.label[places]
    by_class = [places[labels == k] for k in range(len(embedded.class_names))]
    chosen, turns = [], []
    for number in range(count):
        own = by_class[number % len(by_class)]
        turn, place = divmod(number // len(by_class), len(own))
        chosen.append(own[place])
        turns.append(turn)
    ink = embedded.ink.copy()
    ink[chosen] = (ink[chosen] + turns) % len(embedded.inks)
    return replace(embedded, ink=ink).images(np.array(chosen))


class Judge:
    """Distance and agreement of pictures of one set, against its shipped reference."""

    def __init__(self, name: str, extractor: Extractor) -> None:
        self.name, self.extractor = name, extractor
        path = Path(str(files("smidgen.data") / "embedded" / name / "reference.npz"))
        self.known = read_statistics(path, extractor)

    def read(self, images: np.ndarray) -> tuple[Gaussian, Tensor]:
        """Gaussian of the features of images (N, H, W, 3) and the classes (N,) seen in them."""
        starts = range(0, len(images), 250)
        batches = array_batches(
            ((first, images[first : first + 250], None) for first in starts), [self.extractor]
        )
        wanted = {self.extractor.name: frozenset({"fd"})}
        found = accumulate(batches, [self.extractor], wanted, what="images")
        seen = found.accumulated[self.extractor.name]
        return seen.gaussian, seen.predictions[self.name]

    def distance(self, images: np.ndarray) -> float:
        measured, known = self.read(images)[0], self.known.gaussian
        return frechet_distance(measured.mean, measured.covariance, known.mean, known.covariance)

    def agreement(self, images: np.ndarray, names: list[str]) -> float:
        heads = self.extractor.heads[self.name]
        intended = torch.tensor([heads.index(name) for name in names])
        return class_agreement(self.read(images)[1], intended)

    def real_agreement(self) -> float:
        heads = self.extractor.heads[self.name]
        intended = torch.tensor([heads.index(name) for name in self.known.classes])
        return class_agreement(
            self.known.predictions[self.name], intended[self.known.class_numbers]
        )


def draw(base: Base, delta: Delta) -> tuple[np.ndarray, list[str]]:
    """Samples (N, H, W, 3) and the class that each was meant to show."""
    given = {key: value for key, value in PROTOCOL.items() if key != "num_samples"}
    batches = smidgen.sample_arrays(
        base, delta=delta, num_images=PROTOCOL["num_samples"], batch_size=100, **given
    )
    drawn = [(images, labels) for _, images, labels in batches]
    names = [delta.provenance.classes[label] for _, labels in drawn for label in labels]
    return np.concatenate([images for images, _ in drawn]), names


def settings() -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Method, its options and those of the training, as the recipe says."""
    recipe = read_recipe(RECIPE)
    del recipe["base"]
    return recipe.pop("method"), {"blocks": recipe.pop("blocks")}, recipe


def train_set(name: str, base: Base, folder: Path) -> tuple[Delta, Path]:
    """Trains on one set unless that is done; the delta and its run."""
    method, config, training = settings()
    data, run = unpack(name, folder / name), folder / f"{name}-{method}"
    delta = smidgen.train(
        base, data / "train", method=method, method_config=config, output=run, **training
    )
    return delta, run


def untrained(base: Base, class_names: Sequence[str]) -> Delta:
    """The delta as training starts it."""
    method, config, training = settings()
    draw = generator_for(training["seed"], "delta")
    return build_delta(method, base, configure(method, config), class_names, draw)


def run_set(name: str, base: Base, extractor: Extractor, folder: Path) -> dict[str, Any]:
    """Trains and measures one set, and draws its grid."""
    embedded, judge = load_set(name), Judge(name, extractor)
    before, names = draw(base, untrained(base, embedded.class_names))
    delta, run = train_set(name, base, folder)
    trained = json.loads((run / "run.json").read_text())
    after, _ = draw(base, delta)
    real = judge.distance(training_images(embedded, PROTOCOL["num_samples"]))
    distances = judge.distance(before), judge.distance(after)
    agreement, real_agreement = judge.agreement(after, names), judge.real_agreement()
    write_grid(name, embedded, before, after)
    return {
        "num_classes": len(embedded.class_names),
        "num_training_images": int((~embedded.is_test).sum()),
        "num_reference": judge.known.gaussian.count,
        "trained_parameters": delta.num_parameters(),
        "training_seconds": round(trained["seconds"]),
        "training_threads": trained["num_threads"],
        "real_distance": round(real, 3),
        "distance_before": round(distances[0], 3),
        "distance_after": round(distances[1], 3),
        "of_real_distance": round(distances[1] / real, 3),
        "fall": round(distances[0] / distances[1], 2),
        "class_agreement_before": round(judge.agreement(before, names), 4),
        "class_agreement": round(agreement, 4),
        "real_agreement": round(real_agreement, 4),
        "of_real_agreement": round(agreement / real_agreement, 4),
    }


def write_grid(name: str, embedded: EmbeddedSet, before: np.ndarray, after: np.ndarray) -> None:
    """docs/images/domains/<name>.png: the first classes before and after, and real ones."""
    count = len(embedded.class_names)
    shown = np.linspace(0, count - 1, min(COLUMNS, count)).round().astype(int)
    draw = np.random.default_rng(0)
    unseen = [draw.choice(np.flatnonzero(embedded.is_test & (embedded.label == k))) for k in shown]
    rows = {
        "base at\nthe start": before[shown],
        "base + delta": after[shown],
        "base + delta,\nother seeds": after[shown + count],
        "real, from\nunseen fonts": embedded.images(np.array(unseen)),
    }
    PICTURES.mkdir(parents=True, exist_ok=True)
    image_grid(
        {label: [Image.fromarray(image) for image in images] for label, images in rows.items()},
        [short_name(embedded.class_names[k]) for k in shown],
        title=f"{name.capitalize()}, learned with DiffFit",
        scale=2,
        columns_per_band=12,
    ).save(PICTURES / f"{name}.png", optimize=True)


def short_name(name: str) -> str:
    """A class's name over a column: "capital-chi" is "Chi", Thai "do-dek" is "dek"."""
    kind, _, letter = name.partition("-")
    known = {"capital": letter.capitalize(), "final": name, "silent": name}
    return known.get(kind, letter or name)


def header() -> dict[str, Any]:
    """What is needed to repeat the numbers."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(": ", 1)[1] for line in lines if "model name" in line), "")
    packages = ("torch", "diffusers", "numpy", "pillow")
    return {
        "command": "python bench/domains.py",
        "date": date.today().isoformat(),
        "machine": f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "protocol": PROTOCOL,
        "recipe": read_recipe(RECIPE),
    }


def write_page(found: Mapping[str, Mapping[str, Any]], note: str) -> None:
    """docs/domains.md: the table and the grids."""
    lines = [
        "# Nine sets of letters, learned from a base that knows only Latin",
        "",
        f"`python bench/domains.py` made this page and [bench/results/domains.json]"
        f"(../bench/results/domains.json), which has machine, date and versions: DiffFit with "
        f"[one recipe](../recipes/difffit-glyphs.toml), {PROTOCOL['num_samples']:,} samples with "
        f"{PROTOCOL['steps']} DDPM steps at guidance {PROTOCOL['guidance']}, seed 0. "
        "Distances are Frechet distances in the shipped classifier's features to font families "
        "that no training saw; beside them that of as many real images of the training families. "
        "Agreement is the share of samples that the classifier takes for the class asked for, "
        "beside chance and that of real images of unseen families." + (f" {note}" if note else ""),
        "",
        "| set | classes | images | seconds (threads) | distance before | after | real images "
        "| ratio | agreement | chance | real images |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        lines.append(
            f"| {name} | {row['num_classes']} | {row['num_training_images']:,} "
            f"| {row['training_seconds']} ({row['training_threads']}) "
            f"| {row['distance_before']:.1f} "
            f"| {row['distance_after']:.1f} | {row['real_distance']:.1f} "
            f"| {row['of_real_distance']:.2f} | {row['class_agreement']:.1%} "
            f"| {1 / row['num_classes']:.1%} | {row['real_agreement']:.1%} |"
        )
    for name in found:
        lines += ["", f"## {name.capitalize()}", "", f"![{name}](images/domains/{name}.png)"]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_found() -> dict[str, dict[str, Any]]:
    """The rows in the results file, by set."""
    return json.loads(RESULTS.read_text())["sets"] if RESULTS.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default=",".join(SETS), help="comma-separated")
    parser.add_argument("--output", type=Path, default=Path("runs/domains"))
    parser.add_argument("--train-only", action="store_true", help="measure in a later call")
    parser.add_argument("--note", default="", help="a sentence for the page")
    parser.add_argument("--again", action="store_true", help="measure sets that are done again")
    arguments = parser.parse_args()
    found = read_found()
    base, extractor = smidgen.load_base("glyphs"), load_extractor("glyphs")
    for name in arguments.sets.split(","):
        if name in found and not arguments.again:
            continue
        if arguments.train_only:
            train_set(name, base, arguments.output)
            continue
        row = run_set(name, base, extractor, arguments.output)
        print(name, json.dumps(row), flush=True)
        found = read_found() | {name: row}  # another process may have added its sets meanwhile
        found = {key: found[key] for key in SETS if key in found}
        RESULTS.write_text(json.dumps(header() | {"sets": found}, indent=2) + "\n")
    if found:
        write_page(found, arguments.note)


if __name__ == "__main__":
    main()
