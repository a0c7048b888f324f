"""CLIP: the pixels it wants, embeddings of pictures and of texts.

ViT-B/32 and ViT-L/14 as released, and the one of the glyph world, which ships. B images of S x S
pixels, S = 224 (336 for another file of L/14) or 32; D dimensions, 512, 768 or 128; N texts.
Radford et al. 2021 (arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from smidgen.errors import SmidgenError
from smidgen.evaluation.weights import PublishedModel
from smidgen.files.reading import read_json

_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)
PUBLISHED: Mapping[str, PublishedModel] = {
    "clip-b32": PublishedModel(
        repo_id="openai/clip-vit-base-patch32",
        patterns=_FILES,
        revision="refs/pr/15",  # the hub's own conversion; the main branch has pickles only
    ),
    "clip-l14": PublishedModel(repo_id="openai/clip-vit-large-patch14", patterns=_FILES),
}
GLYPHS = "clip-glyphs"  # ships
BICUBIC = 3
TEXTS_AT_A_TIME = 256


class Edge(msgspec.Struct, frozen=True):
    """What a picture's shorter side becomes."""

    shortest_edge: int


class Square(msgspec.Struct, frozen=True):
    """The square that is cut from its middle."""

    height: int
    width: int


class Preprocessor(msgspec.Struct, frozen=True, kw_only=True):
    """preprocessor_config.json of CLIP, as far as it says what happens to pixels."""

    size: Edge
    crop_size: Square
    resample: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def read_preprocessor(folder: Path) -> Preprocessor:
    """The preprocessor_config.json of a folder.

    Raises: SmidgenError if there is none, or it is not the way of `prepare_clip`.
    """
    path = folder / "preprocessor_config.json"
    found = read_json(path, Preprocessor)
    sizes = {found.size.shortest_edge, found.crop_size.height, found.crop_size.width}
    if len(sizes) > 1 or found.resample != BICUBIC:
        raise SmidgenError(f"{path} is not CLIP's: expected one size throughout, and bicubic")
    return found


def prepare_clip(pixels: UInt8[np.ndarray, "H W 3"], size: int) -> UInt8[Tensor, "3 S S"]:
    """The centre square after Pillow's antialiased bicubic has brought the shorter side to `size`.

    Rounded as in the released code: the longer side down, the crop's corner to the nearest even.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    wanted = int(size * width / short), int(size * height / short)
    resized = Image.fromarray(pixels).resize(wanted, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in wanted)
    cropped = resized.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.asarray(cropped).transpose(2, 0, 1).copy())


def prepare_batch(pixels: Float[Tensor, "B 3 H W"], size: int) -> Float[Tensor, "B 3 S S"]:
    """What `prepare_clip` makes of pictures whose channels go from 0 to 255, as numbers with
    gradients. Rounded where Pillow rounds, which gradients pass as if it did not: what a network
    sees is what it sees of the files.
    """
    pixels = _rounded(pixels)
    height, width = pixels.shape[2:]
    short = min(height, width)
    tall, wide = int(size * height / short), int(size * width / short)
    for shape in ((height, wide), (tall, wide)):  # Pillow resizes rows first, and rounds between
        if shape != tuple(pixels.shape[2:]):
            pixels = _rounded(F.interpolate(pixels, shape, mode="bicubic", antialias=True))
    top, left = (round((side - size) / 2) for side in (tall, wide))
    return pixels[:, :, top : top + size, left : left + size]


def _rounded(pixels: Tensor) -> Tensor:
    """The nearest whole numbers from 0 to 255; gradients pass unchanged."""
    return pixels + (pixels.round().clamp(0, 255) - pixels).detach()


def read_clip(
    network: Any,
    images: UInt8[Tensor, "B 3 S S"] | Float[Tensor, "B 3 S S"],
    mean: tuple[float, float, float] = OPENAI_MEAN,
    std: tuple[float, float, float] = OPENAI_STD,
) -> Float[Tensor, "B D"]:
    """The projected embeddings, not normalised, of channels from 0 to 255; `mean` and `std` of
    such from 0 to 1.

    Distances of Gaussians on CLIP (Kynkaanniemi et al. 2023, arXiv 2203.06026; clean-fid) are
    published on these; what compares directions (CMMD, CLIP-I, CLIP-T) normalises them itself.
    """
    centre, scale = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (mean, std))
    seen = network.vision_model(pixel_values=(images.float() / 255 - centre) / scale)
    return network.visual_projection(seen.pooler_output)


@torch.no_grad()
def embed_texts(
    network: Any,
    tokenize: Callable[[Sequence[str]], Mapping[str, Tensor]],
    texts: Sequence[str],
    device: torch.device,
) -> Float[Tensor, "N D"]:
    """The projected embeddings of texts, L2-normalised; what is over 77 tokens (of the
    glyph world's, 16) is cut off.
    """
    parts = [torch.zeros(0, network.text_projection.out_features, device=device)]
    for start in range(0, len(texts), TEXTS_AT_A_TIME):
        tokens = tokenize(texts[start : start + TEXTS_AT_A_TIME])
        read = network.text_model(**{name: ids.to(device) for name, ids in tokens.items()})
        parts.append(F.normalize(network.text_projection(read.pooler_output), dim=1))
    return torch.cat(parts)
