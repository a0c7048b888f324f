"""Measures a shipped base: class agreement, and Frechet distance to unseen font families.

`python -m glyphs.measure glyphs` writes results/measured-glyphs.json. All sides of a distance are
drawn alike: classes evenly, large families by the square root of their size.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from glyphs.colour import colour, draw_colours
from glyphs.images import family_weights, log, write_result
from glyphs.render import Glyphs, load_script
from glyphs.samples import save_grid
from smidgen.api import load_base, sample_arrays
from smidgen.evaluation.features import Extractor, load_extractor
from smidgen.evaluation.metrics import Gaussian, frechet_distance
from smidgen.evaluation.stream import accumulate, array_batches

NUM_REFERENCE = 65 * 62
GUIDANCES = (1.0, 1.5, 4.0)
STEPS = 50


def draw_real(glyphs: Glyphs, test: bool, count: int, seed: int) -> tuple[np.ndarray, Tensor]:
    """`count` images (N, H, W, 3) uint8 of the unseen or the training families, and labels (N,)."""
    draw = np.random.default_rng(seed)
    fonts = np.flatnonzero(glyphs.test == test)
    weights = family_weights(glyphs.family[fonts])
    chosen = draw.choice(fonts, size=count, p=weights / weights.sum())
    labels = np.arange(count) % len(glyphs.class_names)
    ink, ground = draw_colours(count, draw)
    return colour(glyphs.masks[chosen, labels], ink, ground), torch.from_numpy(labels)


def read(extractor: Extractor, images: np.ndarray, head: str) -> tuple[Gaussian, Tensor]:
    """Gaussian of the features of images (N, H, W, 3), and the classes (N,) that the head sees."""
    starts = range(0, len(images), 256)
    batches = array_batches(((i, images[i : i + 256], None) for i in starts), [extractor])
    found = accumulate(batches, [extractor], {extractor.name: frozenset({"fd"})}, what="images")
    seen = found.accumulated[extractor.name]
    return seen.gaussian, seen.predictions[head]


def distance(one: Gaussian, other: Gaussian) -> float:
    return frechet_distance(one.mean, one.covariance, other.mean, other.covariance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", help="glyphs or glyphs-64")
    parser.add_argument("--per-class", type=int, default=20, help="samples of each class")
    parser.add_argument("--grid", type=Path, help="write the samples at guidance 4 to this picture")
    arguments = parser.parse_args()
    base = load_base(arguments.base)
    count = arguments.per_class * base.num_classes
    glyphs = load_script("latin", base.image_size.width)
    extractor = load_extractor("glyphs")
    unseen, labels = draw_real(glyphs, True, NUM_REFERENCE, seed=0)
    reference, seen = read(extractor, unseen, "latin")
    known, _ = read(extractor, draw_real(glyphs, False, count, seed=1)[0], "latin")
    floor = distance(known, reference)
    by_guidance = {}
    for guidance in GUIDANCES:
        batches = sample_arrays(
            base, num_images=count, steps=STEPS, guidance=guidance, batch_size=124
        )
        drawn = [(images, labels) for _, images, labels in batches]
        images = np.concatenate([part for part, _ in drawn])
        intended = torch.tensor([label for _, part in drawn for label in part])
        sampled, guessed = read(extractor, images, "latin")
        far = distance(sampled, reference)
        by_guidance[str(guidance)] = {
            "class_agreement": round(float((guessed == intended).double().mean()), 4),
            "frechet_distance": round(far, 3),
            "of_real_distance": round(far / floor, 3),
        }
        log(f"guidance {guidance}: {by_guidance[str(guidance)]}")
        if arguments.grid and guidance == GUIDANCES[-1]:
            pictures = torch.from_numpy(images[: 62 * 8]).permute(0, 3, 1, 2) / 127.5 - 1
            save_grid(pictures, 62, arguments.grid)
    fields = {
        "num_samples": count,
        "sampler": f"ddpm, {STEPS} steps, seed 0, classes evenly",
        "num_reference": NUM_REFERENCE,
        "real_distance": round(floor, 3),
        "real_agreement": round(float((seen == labels).double().mean()), 4),
        "by_guidance": by_guidance,
    }
    command = f"python -m glyphs.measure {base.name} --per-class {arguments.per_class}"
    log(str(write_result(f"measured-{base.name}", command, fields)))


if __name__ == "__main__":
    main()
