"""page.png of `smidgen demo --text`: prompts before and after, from the same noise."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from smidgen.cli import pictures
from smidgen.core.delta import Delta
from smidgen.evaluation.contexts import prompts_of, subject_of, world_of
from smidgen.files.run_files import DELTA
from smidgen.files.writing import write_png
from smidgen.models.base import Base
from smidgen.models.prompts import DREAMBOOTH
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare

CONTEXTS = (0, 2, 3, 9, 10)  # of those of evaluation: as it is, two colourings, tilted, small
SCALE = 5


def write_page(base: Base, data: Path, folder: Path, sampling: SamplingConfig) -> None:
    """The subject's own pictures, its prompts and those of other things, without the delta of the
    run in `folder` and with it.
    """
    delta = Delta.load(folder / DELTA)
    subject = subject_of(delta.provenance.training[DREAMBOOTH])
    prompts = prompts_of(subject, world_of(base))
    own = [prompts.drawn[place] for place in CONTEXTS]
    others = prompts.others[: len(own)]
    real = [Image.open(path).convert("RGB") for path in sorted(data.glob("*.png"))[: len(own)]]
    rows = {f"{len(real)} pictures of\nthe {subject.class_name}": real}
    first = pictures.image_grid(
        rows | before_and_after(base, delta, own, sampling),
        [shown(prompt) for prompt in own],
        title=f'"{subject.instance_prompt}", learned from {len(real)} pictures',
        scale=SCALE,
    )
    second = pictures.image_grid(
        before_and_after(base, delta, others, sampling),
        [shown(prompt) for prompt in others],
        title="Other prompts, which should stay as they were",
        scale=SCALE,
    )
    width = max(first.width, second.width)
    page = Image.new("RGB", (width, first.height + second.height), pictures.PAPER)
    page.paste(first, (0, 0))
    page.paste(second, (0, first.height))
    write_png(page, folder / "page.png")


def before_and_after(
    base: Base, delta: Delta, prompts: Sequence[str], sampling: SamplingConfig
) -> dict[str, list[Image.Image]]:
    """One image of each prompt without the delta and with it."""
    config = dataclasses.replace(sampling, prompt=tuple(prompts), num_images=len(prompts))
    return {
        name: [
            Image.fromarray(image)
            for _, images in prepare(base, config, delta=one).batches()
            for image in images
        ]
        for name, one in {"base": None, "base\n+ delta": delta}.items()
    }


def shown(prompt: str) -> str:
    """A prompt as the head of a column: `a small sks owl in navy on cream`."""
    return re.sub(r"\bpicture of an? ", "", prompt)
