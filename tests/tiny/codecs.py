"""Codecs: one without weights, and the smallest of each of diffusers' autoencoders."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tests.tiny.weights import lively

LEVELS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "sample_size": 16,
}
CODECS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": LEVELS | {"latent_channels": 4},  # reduces by 2
    "AutoencoderKLFlux2": LEVELS | {"latent_channels": 2, "layers_per_block": 1},  # by 4
    "AutoencoderDC": {  # Sana's, by 4
        "latent_channels": 8,
        "scaling_factor": 0.5,
        **{f"{part}_block_out_channels": (8, 8, 16) for part in ("encoder", "decoder")},
        **{f"{part}_layers_per_block": (1, 1, 1) for part in ("encoder", "decoder")},
        **{f"{part}_qkv_multiscales": ((),) * 3 for part in ("encoder", "decoder")},
    },
    "AutoencoderKLQwenImage": {  # by 2
        "base_dim": 4,
        "z_dim": 2,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False],
        "latents_mean": [0.1, -0.2],
        "latents_std": [1.5, 0.8],
    },
}


def autoencoder(kind: str = "AutoencoderKL", **config: Any) -> Any:
    """A frozen lively autoencoder of this class, with other values where they are given."""
    import diffusers

    made = getattr(diffusers, kind)(**(CODECS[kind] | config))
    if kind == "AutoencoderKLFlux2":
        generator = torch.Generator().manual_seed(4)
        made.bn.running_mean.normal_(generator=generator)
        made.bn.running_var.uniform_(0.5, 2, generator=generator)
    return lively(made, 2).eval().requires_grad_(False)


class BoxCodec:
    """Latents are averages of `factor` x `factor` pixels: red, green, blue and grey, with `spread`.

    Decoding is sin(latent): a random network's latents are large, and clamped they would be black
    and white; so the last bit of a latent shows in its pixel. `calls` has the size of each batch.
    """

    latent_channels = 4

    def __init__(
        self,
        fingerprint: str = "box",
        *,
        factor: int = 2,
        scale: float = 1.0,
        spread: float = 0.05,
    ) -> None:
        self.fingerprint, self.factor = fingerprint, factor
        self.scale, self.spread = scale, spread
        self.calls: list[int] = []

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append(len(images))
        colours = functional.avg_pool2d(images, self.factor) * self.scale
        mean = torch.cat([colours, colours.mean(1, keepdim=True)], dim=1)
        return mean, torch.full_like(mean, self.spread)

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents[:, :3], scale_factor=self.factor).sin()

    def expected(self, pixels: NDArray[np.uint8]) -> Tensor:
        """The mean (4, h, w) of pixels (H, W, 3), in numpy and float64."""
        values = pixels.astype(np.float64) / 127.5 - 1
        side = self.factor
        height, width = values.shape[0] // side, values.shape[1] // side
        pooled = values.reshape(height, side, width, side, 3).mean((1, 3)).transpose(2, 0, 1)
        both = np.concatenate([pooled, pooled.mean(0, keepdims=True)]) * self.scale
        return torch.from_numpy(both).float()
