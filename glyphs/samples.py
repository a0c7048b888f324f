"""Samples of a base of the glyph world: a grid to look at, and the agreement with the classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from glyphs.classifier import WEIGHTS
from smidgen.diffusion.guidance import guide
from smidgen.diffusion.sampler import ddpm, draw_noise, sample_generator
from smidgen.diffusion.schedule import Schedule
from smidgen.evaluation.classifier import GlyphClassifier
from smidgen.models.dit import DiT


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images (N, 3, H, W) in [-1, 1], image i of class i mod K, and their class agreement."""

    images: Tensor
    agreement: float


@torch.inference_mode()
def measure_samples(
    model: DiT,
    class_names: list[str],
    vae: Path,
    guidance: float,
    per_class: int,
    num_steps: int,
) -> Samples:
    """Draws `per_class` ancestral samples of every class; the agreement is the classifier's."""
    codec = AutoencoderKL.from_pretrained(vae).float().eval()
    classifier = GlyphClassifier.load(WEIGHTS)
    script = classifier.find_script(class_names)
    if script is None:
        raise ValueError("the classifier knows no script with these classes")
    labels = torch.arange(len(class_names)).repeat(per_class)
    generators = [sample_generator(0, index) for index in range(len(labels))]
    images = []
    for chosen, own in zip(labels.split(64), batched(generators, 64), strict=True):
        side = model.config.image_size
        noise = draw_noise((4, side, side), own)
        denoise = guide(model, chosen, len(class_names), guidance)
        latents = ddpm(denoise, noise, Schedule.linear(), num_steps, own)
        decoded = codec.decode(latents / codec.config.scaling_factor).sample
        images.append(decoded.clamp(-1, 1))
    pictures = torch.cat(images)
    names = classifier.scripts[script]
    expected = torch.tensor([names.index(name) for name in class_names]).repeat(per_class)
    small = adaptive_avg_pool2d(pictures, 32)  # the classifier's size
    guesses = torch.cat([classifier.logits(b, script) for b in small.split(256)]).argmax(1)
    return Samples(images=pictures, agreement=float((guesses == expected).float().mean()))


def batched(items: list[torch.Generator], size: int) -> list[list[torch.Generator]]:
    """Consecutive parts of at most `size` items."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def save_grid(images: Tensor, columns: int, path: Path) -> None:
    """Writes images (N, 3, H, W) in [-1, 1] as one picture, `columns` in a row."""
    rows = [torch.cat(list(row), 2) for row in images.split(columns) if len(row) == columns]
    grid = torch.cat(rows, 1).add(1).mul(127.5).round().byte()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(path)
