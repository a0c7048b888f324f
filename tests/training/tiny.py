"""The smallest base that can be trained and sampled, and a folder of pictures for it.

A real DiT with random weights everywhere, and a codec without weights.
"""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from smidgen.diffusion.process import Diffusion
from smidgen.diffusion.schedule import Schedule
from smidgen.hosts.host import find_host
from smidgen.models.base import Base, base_fingerprint
from smidgen.models.dit import DiT, DiTConfig

CLASSES = ("ant", "bee", "cat")
IMAGE_SIZE = 8


class BoxCodec:
    """Latents are averages of 2 x 2 pixels: red, green, blue and grey, with a spread of 0.05.

    Decoding is sin(latent): a random network's latents are large, and clamped they would be black
    and white; so the last bit of a latent shows in its pixel.
    """

    factor = 2
    latent_channels = 4
    fingerprint = "box"

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        colours = functional.avg_pool2d(images, 2)
        mean = torch.cat([colours, colours.mean(1, keepdim=True)], dim=1)
        return mean, torch.full_like(mean, 0.05)

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents[:, :3], scale_factor=2).sin()


def tiny_base(seed: int = 0, **config) -> Base:
    """A frozen base of 8-pixel images with three classes; no weight is at its start."""
    generator = torch.Generator().manual_seed(seed)
    shape = {"image_size": 4, "width": 32, "depth": 2, "num_heads": 2, "num_classes": len(CLASSES)}
    denoiser = DiT(DiTConfig(**(shape | config)))
    with torch.no_grad():
        for name, parameter in denoiser.named_parameters():
            if name != "pos_embed":
                parameter.normal_(std=0.1, generator=generator)
    denoiser.requires_grad_(False).eval()
    return Base(
        name=f"tiny-{seed}",
        denoiser=denoiser,
        codec=BoxCodec(),
        class_names=CLASSES,
        process=Diffusion(schedule=Schedule.linear()),
        host=find_host(denoiser),
        fingerprint=base_fingerprint(denoiser),
        image_size=IMAGE_SIZE,
    )


def write_images(folder: Path, classes=("bee", "dog"), per_class: int = 10) -> Path:
    """Noise pictures, a sub-folder for each class."""
    generator = torch.Generator().manual_seed(5)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = torch.randint(256, (10, 10, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")
    return folder
