"""A list of prompts in the place of images: what the objective clip-reward needs where nothing is
shown.
"""

from __future__ import annotations

from pathlib import Path

import torch

from smidgen.data.captions import CaptionFindings
from smidgen.data.findings import Findings
from smidgen.data.latents import LatentSet
from smidgen.errors import UsageError, shown
from smidgen.files.reading import Unreadable, read_bytes
from smidgen.models.base import Base
from smidgen.models.labels import check_lengths

MOST_BYTES = 2**24


def read_prompts(path: Path) -> tuple[str, ...]:
    """The lines of a text file that hold more than spaces, each once.

    Raises: UsageError if there are none, or it is no text.
    """
    try:
        text = read_bytes(path, MOST_BYTES).decode()
    except (Unreadable, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is no text that can be read; expected a folder of images, or a text file with "
            "a prompt a line"
        ) from error
    prompts = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not prompts:
        raise UsageError(f"{path} has no prompts; expected one a line")
    return prompts


def findings_of_prompts(path: Path, prompts: tuple[str, ...]) -> Findings:
    """What is said of them where images would be reported."""
    count = len(prompts)
    return Findings(
        folder=shown(str(path)),
        images=0,
        classes={},
        bad=0,
        bad_share=0.0,
        side_files=0,
        skipped={},
        examples=(),
        captions=CaptionFindings(
            source="prompts",
            images=count,
            several=0,
            distinct=count,
            without=(),
            cut=None,
            unmatched=(),
        ),
    )


def prompts_as_latents(base: Base, path: Path) -> LatentSet:
    """An empty latent for each prompt, which is its caption: only noise of its shape is drawn.

    Raises: UsageError as `read_prompts`, and for a prompt that the base's text encoders cut.
    """
    prompts = read_prompts(path)
    if base.conditioner is not None:
        check_lengths(base.conditioner.files, prompts, base.name)
    empty = torch.zeros(1, 1, *base.latent_shape).expand(len(prompts), -1, -1, -1, -1)
    return LatentSet(
        mean=empty,
        std=empty,
        class_numbers=torch.zeros(len(prompts), dtype=torch.long),
        names=prompts,
        findings=findings_of_prompts(path, prompts),
        captions=tuple((prompt,) for prompt in prompts),
    )
