"""Damaged pictures of a style that the base has never seen, restored by what learned it:
python -m bench.restoring STUDY

STUDY is the folder of recipes/study-style.toml, run, with its deltas. Twenty drawings, of things
that were not trained on, lose their right half, get noise, or half of their pixels a side; the base
alone, DiffFit, adapters and the whole UNet restore each by its caption. Measured are the peak
signal-to-noise ratio of what was lost, and the cosine of restored and original in the features of
clip-glyphs. Writes bench/results/restoring.json and docs/images/restoring.png.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import smidgen
from bench.restored import SIZE, damaged
from smidgen.cli.pictures import image_grid
from smidgen.core.delta import Delta
from smidgen.data.embedded_sets import LINE_DRAWINGS, unpack
from smidgen.evaluation.features import load_extractor
from smidgen.evaluation.machine import machine
from smidgen.evaluation.similarity import paired_cosine
from smidgen.files.run_files import DELTA
from smidgen.files.writing import write_json, write_png
from smidgen.statistics.bootstrap import compare_methods

RESULTS, PAGE = Path("bench/results/restoring.json"), Path("docs/images/restoring.png")
ARMS = ("base", "difffit", "adapter", "full")
DAMAGES: Mapping[str, Mapping[str, Any]] = {
    "right half": {"mask": "mask.png"},
    "noise": {"restore": "denoise", "noise_level": 0.15},
    "half size": {"restore": "upscale"},
}
DRAWN = {"steps": 20, "sampler": "dpm++", "guidance": 4.0, "num_images": 2, "seed": 0}
COUNT, SHOWN = 20, 3  # pictures; of which are shown
METRICS = ("psnr", "clip_i")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Means over all pictures of one training (of the base: of none) and one damage."""

    arm: str
    seed: int
    damage: str
    psnr: float  # dB
    clip_i: float


def pictures(folder: Path) -> list[tuple[Image.Image, str]]:
    """The first picture of each of COUNT things that were not trained on, with its caption."""
    found = []
    for thing in sorted((folder / "test").iterdir())[:COUNT]:
        path = min(thing.glob("*.png"))
        found.append(
            (Image.open(path).convert("RGB"), path.with_suffix(".txt").read_text().strip())
        )
    return found


def restored(
    base: smidgen.Base,
    delta: Delta | None,
    damage: str,
    originals: Sequence[tuple[Image.Image, str]],
    folder: Path,
) -> Iterator[tuple[Image.Image, list[Image.Image]]]:
    """What is given of each picture, and what is drawn from it."""
    settings = dict(DAMAGES[damage])
    for picture, caption in originals:
        given = damaged(picture, settings)
        given.save(folder / "given.png")
        files = {"mask": folder / settings["mask"]} if "mask" in settings else {}
        drawn = smidgen.sample(
            base,
            delta=delta,
            prompts=caption,
            image=folder / "given.png",
            **settings | files | DRAWN,
        )
        yield given, drawn


def psnr(drawn: NDArray[np.uint8], original: NDArray[np.uint8]) -> float:
    """10 log10(255^2 / mean squared error), of all pictures together."""
    error = np.square(drawn.astype(float) - original).mean()
    return float(10 * np.log10(255**2 / error))


def scored(
    damage: str, originals: Sequence[Image.Image], drawn: Sequence[Sequence[Image.Image]]
) -> dict[str, float]:
    """What METRICS say of what is drawn for each original."""
    extractor = load_extractor("clip-glyphs", "cpu")
    both = [
        (np.asarray(one), np.asarray(original))
        for original, own in zip(originals, drawn, strict=True)
        for one in own
    ]
    made, real = (np.stack(part) for part in zip(*both, strict=True))
    lost = slice(SIZE // 2, None) if damage == "right half" else slice(None)
    seen = [
        extractor.read(torch.stack([extractor.prepare(one) for one in part]))[0]
        for part in (made, real)
    ]
    return {
        "psnr": psnr(made[:, :, lost], real[:, :, lost]),
        "clip_i": float(paired_cosine(*seen).mean()),
    }


def compared(scores: Sequence[Score], seeds: Sequence[int]) -> dict[str, Any]:
    """Each arm against full fine-tuning over damages and seeds, by each metric."""
    found = {}
    for metric in METRICS:
        by_arm = {
            arm: {
                (one.damage, str(seed)): getattr(one, metric)
                for one in scores
                for seed in seeds
                if one.arm == arm and one.seed in (seed, -1)
            }
            for arm in ARMS
        }
        compared = compare_methods(by_arm, higher_is_better=True, reference="full")
        found[metric] = [asdict(one) for one in compared]
    return found


def main() -> None:
    """Restore, measure, and write numbers and picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    base = smidgen.load_base("glyphs-text")
    scores: list[Score] = []
    rows: dict[str, list[Image.Image]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        originals = pictures(unpack(LINE_DRAWINGS, folder / LINE_DRAWINGS))
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, SIZE // 2 :] = 255
        Image.fromarray(mask).save(folder / "mask.png")
        for arm in ARMS:
            for seed in [-1] if arm == "base" else options.seeds:
                path = options.study / "runs" / f"{arm}-{seed}" / DELTA
                delta = None if arm == "base" else Delta.load(path)
                for damage in DAMAGES:
                    given, drawn = zip(
                        *restored(base, delta, damage, originals, folder), strict=True
                    )
                    real = [picture for picture, _ in originals]
                    found = scored(damage, real, drawn)
                    scores.append(Score(arm=arm, seed=seed, damage=damage, **found))
                    print(scores[-1], flush=True)
                    if seed > options.seeds[0]:
                        continue
                    for number in range(SHOWN):
                        row = rows.setdefault(f"{damage} {number + 1}", [])
                        if not row:
                            half = given[number].resize((SIZE, SIZE), Image.Resampling.NEAREST)
                            row += [real[number], half]
                        row.append(drawn[number][0])
    seeds = " ".join(map(str, options.seeds))
    write_json(
        {
            "command": f"python -m bench.restoring docs/studies/style --seeds {seeds}",
            "date": str(date.today()),
            "machine": machine(),
            "drawn": DRAWN,
            "damages": DAMAGES,
            "num_pictures": COUNT,
            "scores": [asdict(one) for one in scores],
            "against_full": compared(scores, options.seeds),
        },
        RESULTS,
    )
    columns = ["drawing", "given", *ARMS]
    grid = image_grid(rows, columns, title="Restored by what learned the style, and by the base")
    write_png(grid, PAGE)


if __name__ == "__main__":
    main()
