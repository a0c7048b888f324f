"""The latents that a base of the glyph world is trained on: encoded once, drawn by family.

N latents of 4 x H x W. Kept in data/glyphs under a hash of what they are made from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from glyphs.images import colour_masks, family_weights, log
from glyphs.render import DATA, load_script, masks_path


@dataclass(frozen=True, kw_only=True)
class Latents:
    """Scaled posterior means (N, 4, H, W) float16, labels (N,), and running shares (N,).

    The posterior is narrow (its standard deviation is a few hundredths), so means are enough. The
    shares weigh large families by the square root of their size.
    """

    means: Tensor
    labels: Tensor
    share: Tensor
    class_names: list[str]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` latents with their labels, drawn with replacement."""
        places = torch.rand(count, generator=generator, dtype=torch.float64) * self.share[-1]
        chosen = torch.searchsorted(self.share, places)
        return self.means[chosen].float(), self.labels[chosen]


@torch.inference_mode()
def encode(masks: np.ndarray, vae: Path, draw: np.random.Generator) -> Tensor:
    """Scaled posterior means (N, 4, H/4, W/4) float16 of masks (N, H, W) in drawn colours."""
    codec = AutoencoderKL.from_pretrained(vae).float().eval()
    codec.to(memory_format=torch.channels_last)  # with small batches twice as fast
    means = []
    for first in range(0, len(masks), 64):
        images = colour_masks(masks[first : first + 64], draw)
        images = images.contiguous(memory_format=torch.channels_last)
        mean = codec.encode(images).latent_dist.mean
        means.append((mean * codec.config.scaling_factor).half().contiguous())
    return torch.cat(means)


def cached_means(script: str, image_size: int, vae: Path, colourings: int, seed: int) -> Tensor:
    """Every glyph of the training families in `colourings` drawn colours, encoded once.

    Kept in data/glyphs under a hash of the codec, the glyphs and the settings.
    """
    digest = hashlib.sha256(f"{colourings} {seed}".encode())
    for path in (vae / "diffusion_pytorch_model.safetensors", masks_path(script, image_size)):
        digest.update(path.read_bytes())
    cache = DATA / f"latents-{digest.hexdigest()[:16]}.safetensors"
    if cache.exists():
        return load_file(cache)["means"]
    glyphs = load_script(script, image_size)
    masks = glyphs.masks[~glyphs.test].reshape(-1, image_size, image_size)
    draw = np.random.default_rng(seed)
    means = torch.cat([encode(masks, vae, draw) for _ in range(colourings)])
    save_file({"means": means}, cache)
    log(f"encoded {len(means)} images")
    return means


def load_latents(script: str, image_size: int, vae: Path, colourings: int, seed: int) -> Latents:
    """The latents with their labels and shares."""
    glyphs = load_script(script)
    fonts = np.flatnonzero(~glyphs.test)
    classes = len(glyphs.class_names)
    weights = np.repeat(family_weights(glyphs.family[fonts]), classes)
    return Latents(
        means=cached_means(script, image_size, vae, colourings, seed),
        class_numbers=torch.arange(classes).repeat(len(fonts) * colourings),
        share=torch.from_numpy(np.cumsum(np.tile(weights, colourings))),
        class_names=glyphs.class_names,
    )
