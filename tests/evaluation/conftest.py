"""A feature extractor that needs no weights, and folders of coloured images for it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smidgen.data.images import fit
from smidgen.evaluation import features
from smidgen.evaluation.features import Extractor
from smidgen.sizes import ImageSize

COLOURS = ("red", "green", "blue")


def colour_extractor(sha256: str = "colours-1", on_run: Callable[[], None] | None = None):
    """Features: mean and spread of the channels. Its one head sees the strongest channel."""

    def run(images):
        if on_run:
            on_run()
        pixels = images.float().div(127.5).sub(1).flatten(2)  # (B, 3, S * S)
        return torch.cat([pixels.mean(2), pixels.std(2)], dim=1), {"colours": pixels.mean(2)}

    return Extractor(
        name="colours",
        dim=6,
        image_size=8,
        resize="crop",
        sha256=sha256,
        heads={"colours": COLOURS},
        prepare=lambda pixels: torch.from_numpy(
            fit(Image.fromarray(pixels), ImageSize.of(8), "crop")
        ),
        run=run,
        domain=COLOURS,
    )


def write_image(path: Path, colour: str, seed: int) -> None:
    """Noise with the named channel the brightest."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 120, size=(8, 8, 3), dtype=np.uint8)
    pixels[..., COLOURS.index(colour)] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def class_folder(root: Path, per_class: int, seed: int = 0) -> Path:
    """A sub-folder of images for each colour."""
    for label, colour in enumerate(COLOURS):
        for number in range(per_class):
            write_image(root / colour / f"{number}.png", colour, 1000 * seed + 50 * label + number)
    return root


@pytest.fixture(autouse=True)
def _own_cache_and_table(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "EXTRACTORS", {"colours": lambda device: colour_extractor()})
