"""Pictures that are changed and restored: `python bench/restored.py` makes the one in docs/images.

Shipped drawings that the shipped base has not seen are damaged, and drawn on from there by the base
alone, without a delta: a row for each kind of damage, the noises of one seed beside each other.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import smidgen
from smidgen.cli.pictures import image_grid
from smidgen.data.embedded_sets import SUBJECTS, unpack
from smidgen.files.writing import write_png

PAGE = Path("docs/images/restored.png")
COUNT, SIZE = 4, 32
NOISE = 0.15  # standard deviation, where black is 0 and white 1

# what a row is called, the drawing, the prompt, how it is drawn
ROWS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "--image-strength\n0.6",
        "castle-line/00006.png",
        "a picture of a castle in crimson on white",
        {"image_strength": 0.6},
    ),
    (
        "--mask",
        "castle-line/00005.png",
        "a picture of a castle in orange on grey",
        {"mask": "mask.png"},
    ),
    (
        "--restore denoise",
        "owl-line/00035.png",
        "a picture of an owl in purple on cream",
        {"restore": "denoise", "noise_level": NOISE},
    ),
    (
        "--restore upscale",
        "owl-line/00039.png",
        "a picture of an owl in orange on cream",
        {"restore": "upscale"},
    ),
)


def damaged(picture: Image.Image, settings: dict[str, Any]) -> Image.Image:
    """What is given of a picture: all of it, or without its right half, noisy, or half as large."""
    pixels = np.asarray(picture)
    if "mask" in settings:
        pixels = pixels.copy()
        pixels[:, SIZE // 2 :] = pixels[0, 0]
    elif settings.get("restore") == "denoise":
        noise = NOISE * np.random.default_rng(0).standard_normal(pixels.shape)
        pixels = ((pixels / 255 + noise).clip(0, 1) * 255).astype(np.uint8)
    elif settings.get("restore") == "upscale":
        return picture.resize((SIZE // 2, SIZE // 2), Image.Resampling.BOX)
    return Image.fromarray(pixels)


def main() -> None:
    """Draw all rows and write the picture."""
    base = smidgen.load_base("glyphs-text")
    rows: dict[str, list[Image.Image]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subjects = unpack(SUBJECTS, folder / "subjects")
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[:, SIZE // 2 :] = 255
        Image.fromarray(mask).save(folder / "mask.png")
        for name, file, prompt, settings in ROWS:
            picture = Image.open(subjects / file).convert("RGB")
            given = damaged(picture, settings)
            given.save(folder / "given.png")
            if "mask" in settings:
                settings = {"mask": folder / settings["mask"]}
            drawn = smidgen.sample(
                base, prompts=prompt, image=folder / "given.png", num_images=COUNT, **settings
            )
            shown = given.resize((SIZE, SIZE), Image.Resampling.NEAREST)
            rows[name] = [picture, shown, *drawn]
    columns = ["drawing", "given", *(f"drawn {number}" for number in range(COUNT))]
    title = "Changed and restored by glyphs-text, which has not seen them"
    write_png(image_grid(rows, columns, title=title), PAGE)


if __name__ == "__main__":
    main()
