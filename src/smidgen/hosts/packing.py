"""Latents as the tokens of a transformer, and back. B images, C channels, H rows, W columns."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """Squares of 2 x 2 latents as tokens: (B, C, H, W) -> (B, H/2 * W/2, 4C), C outermost."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, 4 * channels)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack` for latents of H = `height` and W = `width`."""
    batch, _, channels = tokens.shape
    squares = tokens.reshape(batch, height // 2, width // 2, channels // 4, 2, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def grid(*sizes: int, device: torch.device) -> Tensor:
    """All integer coordinates of a grid, the last axis fastest: (product of sizes, axes)."""
    return torch.cartesian_prod(*(torch.arange(size, device=device) for size in sizes))
