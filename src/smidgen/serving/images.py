"""From a request to jobs of the engine, and from their arrays to files."""

from __future__ import annotations

import base64
import io
import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smidgen.errors import UsageError
from smidgen.files.settings import make
from smidgen.models.base import Base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from smidgen.serving.config import ServeConfig
from smidgen.serving.engine import Job
from smidgen.serving.library import Library
from smidgen.serving.schemas import MOST_SEED, Generation

DEFAULT_GUIDANCE = SamplingConfig().guidance


def jobs_of(
    asked: Generation, base: Base, library: Library, config: ServeConfig
) -> tuple[list[Job], int]:
    """The images of a request, and their seed.

    Raises: UnknownModel, UsageError for what is asked and cannot be; SmidgenError for a delta that
        cannot be used.
    """
    for name, most in (("n", config.most_images), ("steps", config.most_steps)):
        if getattr(asked, name) > most:
            raise UsageError(f"{name} is {getattr(asked, name)}; this server takes at most {most}")
    if asked.size not in ("auto", size_of(base)):
        raise UsageError(
            f'size is "{asked.size[:40]}"; this server draws {size_of(base)}, expected that or auto'
        )
    key, delta = library.find(asked.model)
    other = None if asked.guidance_model is None else library.find(asked.guidance_model)[0]
    seed = secrets.randbelow(MOST_SEED + 1) if asked.seed is None else asked.seed
    drawing = prepare(
        base, make(SamplingConfig, _settings(asked, base, library, seed)), delta=delta
    )
    jobs = [
        Job(drawing, number, (key, other), config.image_seconds, asked.partial_images)
        for number in range(asked.n)
    ]
    return jobs, seed


def _settings(asked: Generation, base: Base, library: Library, seed: int) -> dict[str, Any]:
    """The request as settings of a sampling."""
    guidance = DEFAULT_GUIDANCE if asked.guidance is None else asked.guidance
    settings: dict[str, Any] = {
        "num_images": asked.n,
        "seed": seed,
        "steps": asked.steps,
        "sampler": asked.sampler,
        "guidance": guidance,
        "guidance_kind": asked.guidance_kind,
        "guidance_interval": list(asked.guidance_interval),
        "negative_prompt": asked.negative_prompt,
    }
    shown = "classes" if base.conditioner is None else "prompt"
    settings[shown] = [asked.prompt]
    if asked.guidance_model is not None:
        settings["guidance_delta"] = library.entry(asked.guidance_model).path
    return settings


def size_of(base: Base) -> str:
    """WIDTHxHEIGHT of its images."""
    width, height = base.image_size
    return f"{width}x{height}"


def encoded(image: NDArray[np.uint8], kind: str) -> str:
    """A file of this format, in base64."""
    file = io.BytesIO()
    lossless = {"lossless": True} if kind == "webp" else {}
    Image.fromarray(image).save(file, format=kind, **lossless)
    return base64.b64encode(file.getvalue()).decode()
