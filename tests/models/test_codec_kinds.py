"""Each kind of codec against its network as diffusers' pipelines call it."""

import pytest
import torch

from smidgen.models.sources import load_codec
from tests.tiny.codecs import autoencoder

GENERATOR = 6


def images(count: int = 3) -> torch.Tensor:
    drawn = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(GENERATOR))
    return drawn * 2 - 1


def as_sana_does(network, pixels, latents):
    encoded = network.encode(pixels).latent * 0.5
    return encoded, torch.zeros_like(encoded), network.decode(latents / 0.5).sample


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
    ("kind", "reference", "factor", "channels"),
    [
        ("AutoencoderDC", as_sana_does, 4, 8),
        ("AutoencoderKLFlux2", as_flux2_does, 4, 8),
        ("AutoencoderKLQwenImage", as_qwen_does, 2, 2),
    ],
)
def test_a_codec_scales_latents_as_its_pipeline_does(tmp_path, kind, reference, factor, channels):
    network = autoencoder(kind)
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
