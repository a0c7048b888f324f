"""From a request to jobs of the engine, and from their arrays to files."""

from __future__ import annotations

import base64
import io
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import UploadFile
from numpy.typing import NDArray
from PIL import Image

from smidgen.errors import UsageError
from smidgen.files.png_text import text_chunk
from smidgen.files.settings import make
from smidgen.models.base import Base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from smidgen.sampling.own_settings import KEYWORD, own_text
from smidgen.serving.config import ServeConfig
from smidgen.serving.job import Job
from smidgen.serving.library import Library, parsed
from smidgen.serving.schemas import MOST_SEED, Edit, Generation

MOST_PIXELS = 2**24  # of a picture that is sent
DEFAULT_GUIDANCE = SamplingConfig().guidance


@dataclass(frozen=True, kw_only=True)
class Order:
    """The images of a request, and what each of their files says of how it was drawn."""

    asked: Generation
    seed: int
    jobs: list[Job]
    settings: Mapping[str, Any]

    def file(self, job: Job, image: NDArray[np.uint8], *, last: bool = True) -> str:
        """The file of one image, in base64; a PNG has the settings in it, unless it is a picture on
        the way, which is not drawn again by them.
        """
        kind, file = self.asked.output_format, io.BytesIO()
        more: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
        if kind == "png" and last:
            text = own_text(job.drawing, job.number, self.settings, self.asked.model)
            more["pnginfo"] = text_chunk(KEYWORD, text)
        Image.fromarray(image).save(file, format=kind, **more)
        return base64.b64encode(file.getvalue()).decode()


def order_of(asked: Generation, base: Base, library: Library, config: ServeConfig) -> Order:
    """What is to be drawn for a request.

    Raises: UnknownModel, UsageError for what is asked and cannot be; SmidgenError for a delta that
        cannot be used.
    """
    for name, most in (("n", config.most_images), ("steps", config.most_steps)):
        if getattr(asked, name) > most:
            raise UsageError(f"{name} is {getattr(asked, name)}; this server takes at most {most}")
    if asked.guidance_model is not None and len(parsed(asked.guidance_model)) > 1:
        raise UsageError("guidance_model is a sum; expected the name of one delta")
    if asked.size not in ("auto", size_of(base)):
        raise UsageError(
            f'size is "{asked.size[:40]}"; this server draws {size_of(base)}, expected that or auto'
        )
    key, delta = library.find(asked.model)
    other = None if asked.guidance_model is None else library.find(asked.guidance_model)[0]
    seed = secrets.randbelow(MOST_SEED + 1) if asked.seed is None else asked.seed
    with tempfile.TemporaryDirectory() as folder:
        files = _files_of(asked, Path(folder))
        settings = _settings(asked, base, library, seed) | files
        drawing = prepare(base, make(SamplingConfig, settings), delta=delta)
        facts = drawing.facts() | {"delta_sha256": library.sha256(asked.model)}
    jobs = [
        Job(drawing, number, (key, other), config.image_seconds, asked.partial_images)
        for number in range(asked.n)
    ]
    return Order(asked=asked, seed=seed, jobs=jobs, settings=facts)


def _files_of(asked: Generation, folder: Path) -> dict[str, Any]:
    """The pictures of a request as files, and what is done with them."""
    if not isinstance(asked, Edit):
        return {}
    (folder / "image").write_bytes(_received("image", asked.image))
    found: dict[str, Any] = {
        "image": folder / "image",
        "image_strength": asked.image_strength,
        "restore": asked.restore,
        "noise_level": asked.noise_level,
    }
    if asked.mask is not None:
        (folder / "mask").write_bytes(_as_white(_received("mask", asked.mask)))
        found["mask"] = folder / "mask"
    return found


def _received(name: str, file: UploadFile) -> bytes:
    """Raises: UsageError for a picture that would be too large in memory."""
    content, pixels = file.file.read(), 0
    with suppress(Exception), Image.open(io.BytesIO(content)) as picture:  # only its header
        pixels = picture.width * picture.height
    if pixels > MOST_PIXELS:
        raise UsageError(f"{name} has {pixels:,} pixels; this server takes up to {MOST_PIXELS:,}")
    return content


def _as_white(content: bytes) -> bytes:
    """A mask that says by transparency what is drawn anew, as OpenAI's do, as one that says it by
    white, as ours; any other as it is.
    """
    try:
        with Image.open(io.BytesIO(content)) as mask:
            alpha = mask.getchannel("A") if mask.mode in ("RGBA", "LA") else None
    except Exception:  # Pillow's readers raise whatever they run into
        return content  # which says what it is when it is read
    if alpha is None or alpha.getextrema() == (255, 255):
        return content
    file = io.BytesIO()
    alpha.point([255 if value < 128 else 0 for value in range(256)]).save(file, format="PNG")
    return file.getvalue()


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
