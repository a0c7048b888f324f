"""ImageNet (ILSVRC 2012) as its archives unpack, and as Kaggle packs them.

Classes are the 1000 synsets in the order of their ids, as every released model counts them, and are
named by their first word, as the classes of the released bases are.
"""

from __future__ import annotations

import re
from pathlib import Path

from smidgen.data.folder import ImageFolder
from smidgen.data.layout import Layout, contents, first_of, listed, pairs, read_lines, read_table
from smidgen.data.layouts.folder_sets import class_folders
from smidgen.data.layouts.matlab import read_matlab
from smidgen.errors import SmidgenError
from smidgen.files.names import excerpt

DEVKIT = "ILSVRC2012_devkit_t12"
META = (f"{DEVKIT}/data/meta.mat", "devkit/data/meta.mat", "data/meta.mat")
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
KAGGLE_NAMES = "LOC_synset_mapping.txt"
KAGGLE_TRUTH = "LOC_val_solution.csv"
KAGGLE_IMAGES = "ILSVRC/Data/CLS-LOC"
NUMBER = re.compile(r"[0-9]{1,9}")
IMAGES = {
    "train": ("train", "ILSVRC2012_img_train", f"{KAGGLE_IMAGES}/train"),
    "val": ("val", "ILSVRC2012_img_val", f"{KAGGLE_IMAGES}/val"),
}


def _read(root: Path, split: str | None) -> ImageFolder:
    words, synset_of_id = _synsets(root)
    synsets = sorted(words)
    names = [words[synset].split(",")[0] for synset in synsets]
    folder = first_of(root, *IMAGES[str(split)])
    # Many sort the validation images into folders like those of the training images.
    if split == "train" or (folder / synsets[0]).is_dir():
        absent = [synset for synset in synsets if not (folder / synset).is_dir()]
        if absent:
            raise SmidgenError(
                f'looked for {len(synsets):,} folders of synsets in "{folder}"; {len(absent):,} '
                f"are missing, such as {excerpt(absent[0])}; found: {contents(folder)}"
            )
        named = zip(synsets, names, strict=True)
        return class_folders(root, [(folder / synset, name) for synset, name in named])
    numbers = {synset: number for number, synset in enumerate(synsets)}
    truth = _validation_truth(root, synset_of_id)
    if unknown := [synset for _, synset in truth if synset not in numbers]:
        raise SmidgenError(
            f'"{root}": the validation images are of {excerpt(unknown[0])}, which is no class'
        )
    items = ((folder / f"{name}.JPEG", numbers[synset]) for name, synset in truth)
    return listed(root, names, items)


def _synsets(root: Path) -> tuple[dict[str, str], dict[int, str]]:
    """The words of each synset; and the synset of each number that the ground truth uses."""
    if (root / KAGGLE_NAMES).is_file():
        path = root / KAGGLE_NAMES
        words = dict(pairs(path))
        if not words:
            raise SmidgenError(f"{path} names no synset")
        return words, {}
    path = first_of(root, *META)
    rows = read_matlab(path).get("synsets")
    words = {}
    synset_of_id: dict[int, str] = {}
    try:
        # The devkit also lists the inner nodes of the tree, which are no classes.
        for row in (row for row in rows or () if row["num_children"].item() == 0):
            synset, named = row["WNID"], row["words"]
            if not isinstance(synset, str) or not isinstance(named, str):
                raise TypeError("a synset is no text")
            words[synset] = named
            synset_of_id[int(row["ILSVRC2012_ID"].item())] = synset
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise SmidgenError(f"{path} has no synsets as the devkit's meta.mat has them") from error
    if not words:
        raise SmidgenError(f"{path} names no synset")
    return words, synset_of_id


def _validation_truth(root: Path, synset_of_id: dict[int, str]) -> list[tuple[str, str]]:
    """(image, synset) of every validation image."""
    if not synset_of_id:
        return _kaggle_truth(first_of(root, KAGGLE_TRUTH))
    path = first_of(root, *(str(Path(meta).parent / TRUTH) for meta in META))
    found = []
    for number, line in enumerate(read_lines(path), start=1):
        synset = synset_of_id.get(int(line)) if NUMBER.fullmatch(line) else None
        if synset is None:
            raise SmidgenError(
                f'line {number} of {path} is "{excerpt(line)}", which is no class of it'
            )
        found.append((f"ILSVRC2012_val_{number:08d}", synset))
    return found


def _kaggle_truth(path: Path) -> list[tuple[str, str]]:
    """Rows `image,synset left top right bottom ...`: the first synset is the class."""
    rows = read_table(path, "ImageId", "PredictionString")
    if lacking := [number for number, row in enumerate(rows, start=2) if not all(row)]:
        raise SmidgenError(f"line {lacking[0]} of {path} lacks the image or its synset")
    return sorted((name, truth.split()[0]) for name, truth in rows)


IMAGENET = Layout(
    title="ImageNet (ILSVRC 2012)",
    read=_read,
    looked_for="train/<synset>/ and val/ with the images, and the devkit with data/meta.mat and "
    f"data/{TRUTH} ({DEVKIT}.tar.gz); or Kaggle's {KAGGLE_IMAGES}/, {KAGGLE_NAMES} and "
    f"{KAGGLE_TRUTH}. For folders of synsets alone use the layout folder",
    needs=(
        "|".join((KAGGLE_NAMES, *META)),
        "|".join((*IMAGES["train"], *IMAGES["val"])),
    ),
    folders=("ILSVRC2012", "imagenet"),
    splits=("train", "val"),
    default_split="train",
)
