"""What the objective clip-reward does to glyphs-text: python -m bench.clip_reward

A LoRA is trained on 24 prompts for each of the SEEDS, the CLIP that ships being the reward; then
prompts that no training had are drawn, with and without it, from the same noises. CLIP-T is the
judge that was trained for; whether colours and letters are those of the prompt is read from pixels
and by the classifier, which the training never saw. Writes bench/results/clip_reward.json and the
picture in docs/images. An hour of one core that others shared.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import smidgen
from bench.theorem import mean_and_interval
from smidgen.api.sampling import sample_arrays
from smidgen.cli.pictures import image_grid
from smidgen.core.delta import Delta
from smidgen.evaluation.features import Extractor, load_extractor
from smidgen.evaluation.machine import machine
from smidgen.evaluation.samples import colours_right
from smidgen.evaluation.similarity import mean_spread, paired_cosine
from smidgen.files.writing import write_png
from smidgen.models.base import Base

ROOT = Path(__file__).parents[1]
RESULT, PAGE = ROOT / "bench/results/clip_reward.json", ROOT / "docs/images/clip-reward.png"
SEEDS = (0, 1, 2)
INKS = ("black", "navy", "crimson", "green", "purple", "orange")
GROUNDS = ("white", "cream", "grey", "mint")
TRAINED = (
    *("dog", "horse", "fish", "rabbit", "snail", "eagle", "rose", "cactus", "mushroom", "banana"),
    *("pizza", "carrot", "castle", "bicycle", "rocket", "church", "sun", "star", "umbrella"),
    *("alarm clock", "camera", "crown", "guitar", "light bulb"),
)
HELD_OUT = (
    *("cat", "elephant", "owl", "spider", "tulip", "pineapple", "hamburger", "sailboat"),
    *("house", "snowflake", "bell", "key"),
)
LETTERS = tuple("abdefghkmnqr")  # capital; no training had a letter
OF_A_THING, OF_A_LETTER = 8, 4  # images of each held-out prompt
SHOWN, TIMES = 6, 2  # held-out prompts in the picture, images of each
SETTINGS: dict[str, Any] = {
    "objective": "clip-reward",
    "reward": {"steps": 8, "guidance": 4.0},
    "method": "lora",
    "method_config": {"rank": 8, "targets": ["all"]},
    "steps": 80,
    "batch_size": 8,
    "lr": 2e-3,
    "ema_decay": 0.9,
    "validation_share": 0.0,
    "trackers": (),
}
SAMPLING: dict[str, Any] = {"sampler": "dpm++", "steps": 25, "guidance": 4.0, "seed": 1000}


def prompts_of(nouns: Sequence[str], kind: str) -> list[str]:
    """A prompt for each noun, its ink and its ground by its place."""
    return [
        f"a {kind.format('an' if noun[0] in 'aeiou' else 'a', noun)} in {INKS[place % 6]} on "
        f"{GROUNDS[(place // 2) % 4]}"
        for place, noun in enumerate(nouns)
    ]


def drawn(base: Base, delta: Delta | None, prompts: list[str], each: int) -> NDArray[np.uint8]:
    """`each` images (N, 32, 32, 3) of each prompt; image i is of prompt i mod K."""
    settings = {**SAMPLING, "num_images": each * len(prompts)}
    batches = sample_arrays(base, delta=delta, prompts=prompts, **settings)
    return np.concatenate([images for _, images, _ in batches])


def seen(extractor: Extractor, images: NDArray[np.uint8]) -> tuple[torch.Tensor, Any]:
    return extractor.read(torch.stack([extractor.prepare(image) for image in images]))


def measure(base: Base, delta: Delta | None, clip: Extractor, reader: Extractor) -> dict[str, Any]:
    """The numbers of the held-out prompts."""
    assert clip.text is not None, "a CLIP reads texts"
    things = prompts_of(HELD_OUT, "picture of {} {}")
    letters = prompts_of(LETTERS, "letter capital {1}")
    images = drawn(base, delta, things, OF_A_THING)
    features, (other, _) = seen(clip, images)[0], seen(reader, images)
    groups = torch.arange(len(images)) % len(things)
    of_letters = drawn(base, delta, letters, OF_A_LETTER)
    logits = seen(reader, of_letters)[1]["latin"]
    names = reader.heads["latin"]
    read = [names[place] for place in logits.argmax(dim=1).tolist()]
    wanted = [f"upper-{letter}" for letter in LETTERS] * OF_A_LETTER
    return {
        "clip_t": float(paired_cosine(features, clip.text(things)[groups]).mean()),
        "diversity": mean_spread(features, groups),
        "diversity_of_classifier": mean_spread(other, groups),
        "ink_and_ground": float(
            colours_right(images, [things[group] for group in groups]).all(dim=1).double().mean()
        ),
        "letters_right": statistics.mean(a == b for a, b in zip(read, wanted, strict=True)),
    }


def interval(values: Sequence[float]) -> list[float]:
    """The mean of a few seeds with its interval, as numbers to show."""
    return [round(number, 4) for number in mean_and_interval(values)]


def picture(base: Base, delta: Delta) -> Image.Image:
    """Held-out prompts before and after, from the same noises."""
    things = prompts_of(HELD_OUT, "picture of {} {}")[:SHOWN]
    rows = {
        name: [Image.fromarray(image) for image in drawn(base, one, things, TIMES)]
        for name, one in (("glyphs-text", None), ("after the reward", delta))
    }
    names = [f"{HELD_OUT[place % SHOWN]}" for place in range(SHOWN * TIMES)]
    return image_grid(rows, names, title="Prompts that the training had not", scale=2)


def main() -> None:
    """Train, measure, write."""
    begun = time.time()
    base = smidgen.load_base("glyphs-text")
    clip, reader = load_extractor("clip-glyphs"), load_extractor("glyphs")
    before, after = measure(base, None, clip, reader), []
    print("before", before, flush=True)
    with tempfile.TemporaryDirectory() as place:
        prompts = Path(place) / "prompts.txt"
        prompts.write_text("\n".join(prompts_of(TRAINED, "picture of {} {}")))
        for seed in SEEDS:
            output = Path(place) / f"run-{seed}"
            delta = smidgen.train(
                base, prompts, output=output, seed=seed, progress=False, **SETTINGS
            )
            after.append(measure(base, delta, clip, reader))
            print(seed, after[-1], flush=True)
            if seed == SEEDS[0]:
                write_png(picture(base, delta), PAGE)
    document = {
        "command": "python -m bench.clip_reward",
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.time() - begun),
        "machine": machine(),
        "settings": SETTINGS,
        "sampling": SAMPLING,
        "prompts": {"trained": TRAINED, "held_out": HELD_OUT, "letters": LETTERS},
        "before": {name: round(value, 4) for name, value in before.items()},
        "after": {name: interval([one[name] for one in after]) for name in before},
        "by_seed": after,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
