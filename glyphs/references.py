"""Statistics of the unseen families of every set, in the features of the shipped classifier.

`python -m glyphs.references` writes src/smidgen/data/embedded/<set>/reference.npz for the shipped
sets and for Latin, and results/references.json: how often the classifier is right about them.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from glyphs.images import log, write_result
from glyphs.measure import NUM_REFERENCE, draw_real
from glyphs.pack import EMBEDDED
from glyphs.render import DATA, load_script
from smidgen.data.embedded_sets import SETS, unpack
from smidgen.evaluation.features import Extractor, load_extractor
from smidgen.evaluation.reference import folder_statistics, write_statistics

FOLDERS = DATA / "sets"


def save_folder(images: np.ndarray, labels: np.ndarray, names: list[str], folder: Path) -> None:
    """folder/<class>/NNNNN.png."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / names[label] / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=1)


def write_reference(name: str, folder: Path, extractor: Extractor) -> dict[str, Any]:
    """Writes the statistics of a folder of unseen families; what is said of them."""
    known = folder_statistics(folder, extractor, cache_dir=DATA / "cache", keep_features=True)
    path = EMBEDDED / name / "reference.npz"
    path.parent.mkdir(exist_ok=True)
    write_statistics(known, path)
    with np.load(path) as arrays:  # features in half precision: a quarter of the bytes
        stored = {key: arrays[key] for key in arrays.files}
    np.savez_compressed(path, **stored | {"features": stored["features"].astype(np.float16)})
    index = {class_name: i for i, class_name in enumerate(extractor.heads[name])}
    expected = torch.tensor([index[class_name] for class_name in known.classes])[
        known.class_numbers
    ]
    right = (known.predictions[name] == expected).double().mean()
    return {"num_reference": known.gaussian.count, "real_agreement": round(float(right), 4)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    extractor = load_extractor("glyphs")
    found: dict[str, dict[str, Any]] = {}
    for name in SETS:
        folder = unpack(name, FOLDERS / name)
        found[name] = write_reference(name, folder / "test", extractor)
        log(f"{name}: {found[name]}")
    latin = load_script("latin")
    images, labels = draw_real(latin, True, NUM_REFERENCE, seed=0)
    save_folder(images, labels.numpy(), latin.class_names, FOLDERS / "latin" / "test")
    found["latin"] = write_reference("latin", FOLDERS / "latin" / "test", extractor)
    fields = {"sets": found}
    log(str(write_result("references", "python -m glyphs.references", fields)))


if __name__ == "__main__":
    main()
