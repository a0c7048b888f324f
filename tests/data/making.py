"""Small image files to test with, and a codec that is a linear map with a count of its calls."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image


def noise(seed: int, width: int = 16, height: int = 16) -> NDArray[np.uint8]:
    """Random pixels (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_image(path: Path, seed: int = 0, width: int = 16, height: int = 16) -> Path:
    """A file of random pixels in the format of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(seed, width, height)).save(path)
    return path


def write_folder(root: Path, classes: tuple[str, ...] = ("a", "b"), num_images: int = 3) -> Path:
    """`num_images` different PNG files in each class folder."""
    for number, name in enumerate(classes):
        for index in range(num_images):
            write_image(root / name / f"{index}.png", seed=100 * number + index)
    return root


def snapshot(root: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every path below a folder with its modification time and bytes."""
    paths = [root, *sorted(root.rglob("*"))]
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in paths
    }


class LinearCodec:
    """Mean: the average over 4 x 4 pixels of red, green, blue and all; std: `spread` everywhere."""

    factor = 4

    def __init__(self, fingerprint: str = "linear", scale: float = 1.0, spread: float = 0.5):
        self.fingerprint = fingerprint
        self.scale = scale
        self.spread = spread
        self.calls: list[int] = []

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append(len(images))
        pooled = torch.nn.functional.avg_pool2d(images, 4) * self.scale
        mean = torch.cat([pooled, pooled.mean(1, keepdim=True)], dim=1)
        return mean, torch.full_like(mean, self.spread)

    def expected(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """The mean (4, h, w) of pixels (H, W, 3), in numpy and float64."""
        values = pixels.astype(np.float64) / 127.5 - 1
        height, width = values.shape[0] // 4, values.shape[1] // 4
        pooled = values.reshape(height, 4, width, 4, 3).mean((1, 3)).transpose(2, 0, 1)
        both = np.concatenate([pooled, pooled.mean(0, keepdims=True)]) * self.scale
        return torch.from_numpy(both).float()
