"""Kinds of run, the folder in which they are made, and what must be equal of two of them."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.cli.conftest import write_base
from tests.tiny.images import noise

OF_TIME = {"seconds", "images_per_second"}  # what no two runs share
PROMPTS = "prompts"  # the folder of a base that reads them
NOT_COMPARED = {
    "recipe.toml",  # says where the run is
    "run.json",  # tells how it went
}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Flags of `smidgen train` beside those that all share, and how many processes run it."""

    flags: str
    steps: int = 100
    processes: int = 1
    base: str = "base"


RUNS: Mapping[str, Kind] = {
    "accumulated": Kind(flags="--method lora --gradient-accumulation 2 --checkpoint-every 7"),
    "validated": Kind(flags="--method bitfit --validation-share 0.3 --checkpoint-every 10"),
    "saved at each step": Kind(
        flags="--method difffit --checkpoint-every 1 --keep-checkpoints 1 --keep-deltas 1", steps=50
    ),
    "full": Kind(
        flags="--method full --checkpoint-every 20 --lr 1e-3 --warmup-steps 50 "
        "--lr-schedule cosine --ema-decay 0.9"
    ),
    "recomputed": Kind(
        flags="--method adaptformer+vpt --gradient-checkpointing --precision bf16 "
        "--checkpoint-every 15 --validate-every 10 --validation-share 0.3"
    ),
    "with previews": Kind(
        flags="--method difffit+lora --min-snr 5 --sample-every 40 --checkpoint-every 30"
    ),
    "of prompts": Kind(flags="--method adapter --checkpoint-every 5", base=PROMPTS, steps=40),
    "of two": Kind(
        flags="--method difffit --checkpoint-every 6 --validation-share 0.3", processes=2
    ),
    "of two, accumulated": Kind(
        flags="--method lora --gradient-accumulation 2 --checkpoint-every 9 --sample-every 30",
        processes=2,
    ),
    "of two, in all": Kind(flags="--method full --checkpoint-every 25", processes=2),
}


def build(folder: Path) -> None:
    """A base, and images of two classes."""
    write_base(folder / "base", seed=0)
    for name in ("dog", "elk"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(6):
            pixels = noise(number + len(name), 8, 8).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")


def arguments(kind: Kind, folder: Path, output: Path) -> list[str]:
    """The command that makes such a run."""
    places = ["--base", folder / kind.base, "--data", folder / "photos", "--output", output]
    own = ["--cache-dir", output.with_suffix(".cache"), "--steps", kind.steps, *kind.flags.split()]
    shared = ["--batch-size", "4", "--flip", "--trackers", "--num-threads", "1"]
    return ["train", *map(str, (*places, *shared, *own))]


def difference(whole: Path, resumed: Path) -> str | None:
    """The first file that is not equal, None if all are, but for times and places."""
    sides = [_files(folder) for folder in (whole, resumed)]
    alone = sides[0].keys() ^ sides[1].keys()
    if alone:
        return f"only one run has {min(alone)}"
    changed = [name for name, content in sides[0].items() if sides[1][name] != content]
    return f"{changed[0]} differs" if changed else None


def _files(folder: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fspath(path.relative_to(folder))
        if path.is_file() and name not in NOT_COMPARED:
            content = path.read_bytes()
            if path.suffix in (".json", ".jsonl"):
                documents = content.splitlines() if path.suffix == ".jsonl" else [content]
                found[name] = [_timeless(json.loads(one)) for one in documents]
            else:
                found[name] = content
    return found


def _timeless(document: Any) -> Any:
    if not isinstance(document, dict):
        return document
    return {name: value for name, value in document.items() if name not in OF_TIME}
