"""Small bases for these tests: a DiT with random weights and a tiny autoencoder on disk."""

import pytest
import torch

from smidgen.models.dit import DiT, DiTConfig

TINY = DiTConfig(image_size=4, width=32, depth=2, num_heads=4, num_classes=5)


def random_dit(config: DiTConfig = TINY, seed: int = 0) -> DiT:
    """Every weight and bias random: no zero gate hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    model = DiT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                parameter.normal_(std=0.2, generator=generator)
    return model.requires_grad_(False).eval()


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
    """A diffusers AutoencoderKL that reduces by 2, with random weights, as diffusers saves it."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder = tmp_path_factory.mktemp("codec") / "vae"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=0.5,
            sample_size=8,
        ).save_pretrained(folder)
    return folder
