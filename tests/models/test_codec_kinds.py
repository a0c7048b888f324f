"""Each kind of codec against its network as diffusers' pipelines call it."""

import pytest
import torch

from smidgen.models.pretrained import load_codec
from tests.models.tiny_pipelines import randomise

GENERATOR = 6


def images(count: int = 3) -> torch.Tensor:
    drawn = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(GENERATOR))
    return drawn * 2 - 1


def deep_compression():
    from diffusers import AutoencoderDC

    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.4,
    )


def flux2():
    from diffusers import AutoencoderKLFlux2

    network = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    generator = torch.Generator().manual_seed(1)
    network.bn.running_mean.normal_(generator=generator)
    network.bn.running_var.uniform_(0.5, 2.0, generator=generator)
    return network


def qwen():
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.4],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )


def as_sana_does(network, pixels, latents):
    encoded = network.encode(pixels).latent * 0.4
    return encoded, torch.zeros_like(encoded), network.decode(latents / 0.4).sample


def as_flux2_does(network, pixels, latents):
    from diffusers import Flux2Pipeline

    posterior = network.encode(pixels).latent_dist
    mean = network.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(network.bn.running_var.view(1, -1, 1, 1) + network.config.batch_norm_eps)
    encoded = (Flux2Pipeline._patchify_latents(posterior.mean) - mean) / std
    spread = Flux2Pipeline._patchify_latents(posterior.std) / std
    decoded = network.decode(Flux2Pipeline._unpatchify_latents(latents * std + mean)).sample
    return encoded, spread, decoded


def as_qwen_does(network, pixels, latents):
    mean = torch.tensor(network.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(network.config.latents_std).view(1, -1, 1, 1, 1)
    posterior = network.encode(pixels.unsqueeze(2)).latent_dist
    decoded = network.decode(latents.unsqueeze(2) * std + mean).sample[:, :, 0]
    return ((posterior.mean - mean) / std)[:, :, 0], (posterior.std / std)[:, :, 0], decoded


@pytest.mark.parametrize(
    ("build", "reference", "factor", "channels"),
    [
        (deep_compression, as_sana_does, 2, 4),
        (flux2, as_flux2_does, 4, 16),
        (qwen, as_qwen_does, 2, 4),
    ],
)
def test_a_codec_scales_latents_as_its_pipeline_does(tmp_path, build, reference, factor, channels):
    network = randomise(build(), 3)
    network.save_pretrained(tmp_path / "vae")
    codec = load_codec(tmp_path / "vae")
    assert (codec.factor, codec.latent_channels) == (factor, channels)
    side = 16 // factor
    latents = torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mean, std, decoded = reference(network, images(), latents)
    found_mean, found_std = codec.encode(images())
    assert found_mean.shape == (3, channels, side, side)
    torch.testing.assert_close(found_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_std, std, rtol=1e-4, atol=1e-5)
    # another batch size rounds differently
    torch.testing.assert_close(codec.decode(latents), decoded.clamp(-1, 1), rtol=0, atol=1e-4)
