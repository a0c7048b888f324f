"""The kinds of autoencoders: how each one's network is called and its latents are scaled.

B images of H x W pixels, C latent channels of h x w latent pixels. A kind is found by the class
name in a codec's config.json; the networks come in from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Config = Mapping[str, Any]
Posterior = tuple[Tensor, Tensor]  # mean and standard deviation, (B, C, h, w) each


@dataclass(frozen=True, kw_only=True)
class CodecKind:
    """One class of autoencoders.

    `factor(config)`: image pixels to a latent pixel, along one side; `channels(config)` of a
    latent. `encode(network, config, images)` gives the posterior and `decode(network, config,
    latents)` the images, both in the scale in which the base works.
    """

    factor: Callable[[Config], int]
    channels: Callable[[Config], int]
    encode: Callable[[Any, Config, Tensor], Posterior]
    decode: Callable[[Any, Config, Tensor], Tensor]


def _halvings(levels: str, default: int) -> Callable[[Config], int]:
    """Each of the levels that this key lists, but one, halves the image; `default`: without it."""
    return lambda config: 2 ** ((len(config[levels]) if levels in config else default) - 1)


def _kl_encode(network: Any, config: Config, images: Tensor) -> Posterior:
    scale, shift = _scale(config), config.get("shift_factor") or 0.0
    posterior = network.encode(images).latent_dist
    return (posterior.mean - shift) * scale, posterior.std * scale


def _kl_decode(network: Any, config: Config, latents: Tensor) -> Tensor:
    return network.decode(latents / _scale(config) + (config.get("shift_factor") or 0.0)).sample


def _scale(config: Config) -> float:
    return config.get("scaling_factor", 0.18215)


def _dc_encode(network: Any, config: Config, images: Tensor) -> Posterior:
    """Without a posterior: the latent itself and no spread."""
    mean = network.encode(images).latent * config.get("scaling_factor", 1.0)
    return mean, torch.zeros_like(mean)


def _dc_decode(network: Any, config: Config, latents: Tensor) -> Tensor:
    return network.decode(latents / config.get("scaling_factor", 1.0)).sample


def _flux2_encode(network: Any, config: Config, images: Tensor) -> Posterior:
    """Squares of 2 x 2 latent pixels become channels, normalised by the codec's statistics."""
    posterior, (mean, std) = network.encode(images).latent_dist, _flux2_statistics(network, config)
    squares = functional.pixel_unshuffle(posterior.mean, 2)
    return (squares - mean) / std, functional.pixel_unshuffle(posterior.std, 2) / std


def _flux2_decode(network: Any, config: Config, latents: Tensor) -> Tensor:
    mean, std = _flux2_statistics(network, config)
    return network.decode(functional.pixel_shuffle(latents * std + mean, 2)).sample


def _flux2_statistics(network: Any, config: Config) -> Posterior:
    variance = network.bn.running_var + config.get("batch_norm_eps", 1e-4)
    return network.bn.running_mean.reshape(1, -1, 1, 1), variance.sqrt().reshape(1, -1, 1, 1)


def _qwen_encode(network: Any, config: Config, images: Tensor) -> Posterior:
    """A codec of films: an image is one of a single frame."""
    posterior, (mean, std) = (
        network.encode(images[:, :, None]).latent_dist,
        _qwen_statistics(images, network),
    )
    return (posterior.mean[:, :, 0] - mean) / std, posterior.std[:, :, 0] / std


def _qwen_decode(network: Any, config: Config, latents: Tensor) -> Tensor:
    mean, std = _qwen_statistics(latents, network)
    return network.decode((latents * std + mean)[:, :, None]).sample[:, :, 0]


def _qwen_statistics(like: Tensor, network: Any) -> Posterior:
    config = network.config  # its defaults are the released values
    return tuple(
        torch.tensor(config[key]).to(like).reshape(1, -1, 1, 1)
        for key in ("latents_mean", "latents_std")
    )  # pyright: ignore[reportReturnType]


CODECS: Mapping[str, CodecKind] = {
    "AutoencoderKL": CodecKind(
        factor=_halvings("block_out_channels", 1),
        channels=lambda config: config.get("latent_channels", 4),
        encode=_kl_encode,
        decode=_kl_decode,
    ),
    "AutoencoderDC": CodecKind(
        factor=_halvings("encoder_block_out_channels", 6),
        channels=lambda config: config.get("latent_channels", 32),
        encode=_dc_encode,
        decode=_dc_decode,
    ),
    "AutoencoderKLFlux2": CodecKind(
        factor=lambda config: 2 * _halvings("block_out_channels", 4)(config),
        channels=lambda config: 4 * config.get("latent_channels", 32),
        encode=_flux2_encode,
        decode=_flux2_decode,
    ),
    "AutoencoderKLQwenImage": CodecKind(
        factor=lambda config: 2 ** len(config.get("temperal_downsample", (False, True, True))),
        channels=lambda config: config.get("z_dim", 16),
        encode=_qwen_encode,
        decode=_qwen_decode,
    ),
}
