"""Small image files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
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


def write_folder(root: Path, classes: Sequence[str] = ("a", "b"), per_class: int = 3) -> Path:
    """`per_class` different PNG files in a sub-folder for each class."""
    for number, name in enumerate(classes):
        for index in range(per_class):
            write_image(root / name / f"{index}.png", seed=100 * number + index)
    return root


def write_photos(root: Path, classes: Sequence[str] = ("bee", "dog"), per_class: int = 10) -> Path:
    """Enough to train on, of a class that the tiny base knows and of a new one."""
    return write_folder(root, classes, per_class)


def snapshot(root: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every path below a folder with its modification time and bytes."""
    paths = [root, *sorted(root.rglob("*"))]
    return {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in paths
    }
