"""What requests and answers are: the forms of OpenAI's image API, and what smidgen has besides."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from smidgen.diffusion.names import Guidance, Sampler
from smidgen.sampling.config import Restoration

MOST_SEED = 2**31 - 1
Name = Annotated[str, StringConstraints(min_length=1, max_length=400)]


class Generation(BaseModel):
    """Images to draw. What other servers take and this one has no use for is passed over:
    background, moderation, output_compression, quality, style, user.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    model: Annotated[Name, Field(description="a delta, NAME:STRENGTH, a sum, or the base's name")]
    prompt: Annotated[
        str,
        StringConstraints(min_length=1, max_length=4_000),
        Field(description="of a base that reads prompts, else the name of a class"),
    ]
    n: Annotated[int, Field(ge=1, description="images, of this seed and the numbers from 0 on")] = 1
    size: Annotated[str, Field(description="auto, or the base's own size as WIDTHxHEIGHT")] = "auto"
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] | None = None
    steps: Annotated[int, Field(ge=1)] = 50
    sampler: Sampler | None = None
    guidance: Annotated[float, Field(ge=-1000, le=1000)] | None = None
    guidance_kind: Guidance = "classifier-free"
    guidance_model: Annotated[Name, Field(description="the weaker delta of auto")] | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    negative_prompt: Annotated[str, StringConstraints(max_length=4_000)] = ""
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=8)] = 0

    background: Any = None
    moderation: Any = None
    output_compression: Any = None
    quality: Any = None
    style: Any = None
    user: Any = None


class Edit(Generation):
    """Images to draw from another one, as a form of several parts."""

    image: Annotated[UploadFile, Field(description="the picture that is changed or restored")]
    mask: Annotated[
        UploadFile | None,
        Field(description="transparent, or where nothing is, white: what is drawn anew"),
    ] = None
    image_strength: Annotated[float, Field(gt=0, le=1)] | None = None
    restore: Restoration | None = None
    noise_level: Annotated[float, Field(gt=0, le=1)] | None = None
    input_fidelity: Any = None


class Picture(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    seed: int
    index: int


class Generated(BaseModel):
    """The images of a request."""

    created: int
    data: list[Picture]
    model: str
    output_format: str
    size: str


class Model(BaseModel):
    """A delta, or the base."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "smidgen"
    method: str | None = None
    classes: list[str] = []
    bytes: int | None = None
    numbers: Annotated[dict[str, float], Field(description="what its run measured last")] = {}
    has_grid: bool = False


class Models(BaseModel):
    """All that can be asked for."""

    object: Literal["list"] = "list"
    data: list[Model]


class About(BaseModel):
    """What the server draws, and how much of it at once."""

    base: str
    size: str
    prompts: bool
    samplers: list[str]
    most_images: int
    most_steps: int
    studies: list[str]


class Problem(BaseModel):
    """Why there is no answer."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failed(BaseModel):
    """The form of all errors."""

    error: Problem
