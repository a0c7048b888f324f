"""A coloured relief and how it looks from the side, with gradients, in plain PyTorch.

B views of H x W pixels; a point of the picture is (x, y) in [-1, 1], as grid_sample has it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ROUNDS = 4  # in which a ray finds the height that it meets
LIGHT = (-0.4, -0.5, 1.0)  # towards it: from the upper left, above the picture
AMBIENT = 0.5  # share of the light that comes from everywhere


class Relief(nn.Module):
    """A height and a colour for each pixel, as logits; `depth` is the greatest height, where half
    the picture's side is 1. It begins flat, and grey but for a little noise.
    """

    def __init__(self, height: int, width: int, depth: float, generator: torch.Generator) -> None:
        super().__init__()
        self.depth = depth
        noise = torch.randn(4, height, width, generator=generator)
        self.bumps = nn.Parameter(0.1 * noise[:1])
        self.paint = nn.Parameter(0.1 * noise[1:])

    @property
    def heights(self) -> Tensor:
        """(1, H, W) from 0 to `depth`."""
        return self.depth * self.bumps.sigmoid()

    @property
    def colours(self) -> Tensor:
        """(3, H, W) from 0 to 1, in a light from everywhere."""
        return self.paint.sigmoid()

    def render(self, sides: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], looked at from these sides (B, 2), tangents of angles to the
        right and down. A point (x, y) of height h is seen at (x, y) + h side.

        What is seen at a place is found by fixed-point iteration, as in relief mapping (Policarpo
        et al. 2005); it is lit by Lambert's law, flat ground with 1.
        """
        count, (height, width) = len(sides), self.bumps.shape[1:]
        surface = torch.cat([self.heights, self.colours * self._light()])
        surface = surface.expand(count, -1, -1, -1)
        rows = (torch.arange(height, device=sides.device) + 0.5) / height * 2 - 1
        columns = (torch.arange(width, device=sides.device) + 0.5) / width * 2 - 1
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        places = torch.stack([x, y], dim=2).expand(count, -1, -1, -1)  # (B, H, W, 2)
        met = places - self.depth * sides[:, None, None]  # from above: what is high hides the rest
        for _ in range(ROUNDS):
            h = _at(surface[:, :1], met)[:, 0, :, :, None]
            met = places - h * sides[:, None, None]
        return 2 * _at(surface[:, 1:], met).clamp(max=1) - 1

    def roughness(self) -> Tensor:
        """The mean square of the differences of neighbouring heights, a pixel's side being 1."""
        heights = self.heights[0] * self.bumps.shape[2] / 2
        return heights.diff(dim=0).square().mean() + heights.diff(dim=1).square().mean()

    def _light(self) -> Tensor:
        """(1, H, W): how bright each place is."""
        height, width = self.bumps.shape[1:]
        heights = functional.pad(self.heights[None], (1, 1, 1, 1), mode="replicate")[0, 0]
        right = (heights[1:-1, 2:] - heights[1:-1, :-2]) * width / 4
        down = (heights[2:, 1:-1] - heights[:-2, 1:-1]) * height / 4
        x, y, z = LIGHT
        facing = (z - x * right - y * down) / (1 + right.square() + down.square()).sqrt() / z
        return (AMBIENT + (1 - AMBIENT) * facing.clamp(min=0))[None]


def _at(maps: Tensor, places: Tensor) -> Tensor:
    """The values of maps (B, C, H, W) at these places (B, H, W, 2)."""
    return functional.grid_sample(maps, places, align_corners=False, padding_mode="border")
