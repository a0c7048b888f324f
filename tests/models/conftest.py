"""Inputs of a DiT, and an autoencoder on disk."""

from dataclasses import replace

import pytest
import torch

from smidgen.models.dit import DiTConfig
from tests.tiny.codecs import autoencoder
from tests.tiny.networks import DIT

TINY = replace(DIT, width=32, num_heads=4, num_classes=5)


def inputs(config: DiTConfig = TINY, batch: int = 3, dtype: torch.dtype = torch.float32):
    """Noisy latents, timesteps up to the last one, and labels up to the null label."""
    generator = torch.Generator().manual_seed(1)
    size = config.image_size
    x = torch.randn(batch, config.in_channels, size, size, generator=generator, dtype=dtype)
    t = torch.linspace(0, 999, batch).long()
    y = torch.arange(batch) + config.num_classes + 1 - batch
    return x, t, y


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory):
    """An AutoencoderKL that reduces by 2, as diffusers saves it."""
    folder = tmp_path_factory.mktemp("codec") / "vae"
    autoencoder(scaling_factor=0.5, sample_size=8).save_pretrained(folder)
    return folder
