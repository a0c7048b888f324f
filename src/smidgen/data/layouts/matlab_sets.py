"""Data sets with their labels in MATLAB files: Oxford Flowers-102 and Stanford Cars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from smidgen.data.folder import ImageFolder
from smidgen.data.layout import Layout, first_of, listed, read_lines
from smidgen.data.layouts.matlab import read_matlab
from smidgen.errors import SmidgenError

# the names on the data set's page, in the order of the labels: the archives hold numbers only
FLOWERS = Path(__file__).with_name("flowers.txt")
FLOWER_SPLITS = {
    "train": ("trnid",),
    "val": ("valid",),
    "test": ("tstid",),
    "all": ("trnid", "valid", "tstid"),
}


def _read_flowers(root: Path, split: str | None) -> ImageFolder:
    """imagelabels.mat has the class of image i, setid.mat the images of a split; both from 1."""
    labels = _numbers(root / "imagelabels.mat", "labels")
    parts = [_numbers(root / "setid.mat", name) for name in FLOWER_SPLITS[str(split)]]
    kept = np.concatenate(parts)
    names = read_lines(FLOWERS)
    if kept.min(initial=1) < 1 or kept.max(initial=1) > len(labels):
        raise SmidgenError(f"setid.mat in {root} names images that imagelabels.mat does not")
    if labels.min(initial=1) < 1 or labels.max(initial=1) > len(names):
        raise SmidgenError(f"imagelabels.mat in {root} has classes outside 1 to {len(names)}")
    items = (
        (root / "jpg" / f"image_{number:05d}.jpg", int(labels[number - 1]) - 1) for number in kept
    )
    return listed(root, names, items)


def _numbers(path: Path, name: str) -> np.ndarray:
    value = read_matlab(path).get(name)
    if not isinstance(value, np.ndarray):
        raise SmidgenError(f'{path} has no array "{name}"')
    with np.errstate(invalid="ignore"):  # what is no number is out of every range
        return value.ravel().astype(np.int64)


def _read_cars(root: Path, split: str | None) -> ImageFolder:
    """Structs of a file name and a class from 1; car_ims and cars_annos.mat are the older form."""
    if not (root / "devkit").is_dir():
        return _read_old_cars(root, split)
    meta = root / "devkit" / "cars_meta.mat"
    names = read_matlab(meta).get("class_names")
    path = root / "devkit" / "cars_train_annos.mat"
    if split == "test":
        # The devkit's own file for the test images has no classes.
        name = "cars_test_annos_withlabels.mat"
        path = first_of(root, name, f"devkit/{name}")
    folder = root / f"cars_{split}"
    items = [(folder / name, label - 1) for name, label in _annotations(path, "fname", "class")]
    return _cars(root, names, items, meta)


def _read_old_cars(root: Path, split: str | None) -> ImageFolder:
    path = root / "cars_annos.mat"
    wanted = int(split == "test")
    rows = _annotations(path, "relative_im_path", "class", "test")
    items = [(root / name, label - 1) for name, label, is_test in rows if is_test == wanted]
    return _cars(root, read_matlab(path).get("class_names"), items, path)


def _annotations(path: Path, name: str, *numbers: str) -> list[tuple[Any, ...]]:
    """The file name of every row, and its numbers."""
    try:
        rows = list(read_matlab(path)["annotations"])
        return [(str(Path(r[name])), *(int(r[number].item()) for number in numbers)) for r in rows]
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        fields = " and ".join((name, *numbers))
        raise SmidgenError(f"{path} has no annotations with {fields}") from error


def _cars(root: Path, names: Any, items: list[tuple[Path, int]], origin: Path) -> ImageFolder:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SmidgenError(f"{origin} has no class_names")
    if not all(0 <= label < len(names) for _, label in items):
        raise SmidgenError(f"{root}: annotations of classes outside 1 to {len(names)}")
    return listed(root, names, items)


FLOWERS_102 = Layout(
    title="Oxford Flowers-102",
    read=_read_flowers,
    looked_for="jpg/image_00001.jpg and on (102flowers.tgz), imagelabels.mat and setid.mat",
    needs=("jpg", "imagelabels.mat", "setid.mat"),
    folders=("flowers-102", "102flowers"),
    splits=tuple(FLOWER_SPLITS),
    default_split="train",
)
STANFORD_CARS = Layout(
    title="Stanford Cars",
    read=_read_cars,
    looked_for="cars_train/, cars_test/, devkit/ with cars_meta.mat and cars_train_annos.mat "
    "(car_devkit.tgz), and cars_test_annos_withlabels.mat for the test images; or car_ims/ and "
    "cars_annos.mat",
    needs=("devkit/cars_meta.mat|cars_annos.mat", "cars_train|cars_test|car_ims"),
    folders=("stanford_cars", "stanford-cars", "cars"),
    splits=("train", "test"),
    default_split="train",
)
