"""Data sets that say in text files or tables which image is what: Food-101, SUN397, DF-20M mini,
CUB-200-2011. The lists decide; what lies beside the listed images is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smidgen.data.folder import ImageFolder
from smidgen.data.layout import (
    Layout,
    first_of,
    listed,
    names_in,
    pairs,
    read_lines,
    read_table,
    spaced,
)
from smidgen.data.listing import BadFile
from smidgen.errors import SmidgenError
from smidgen.files.names import excerpt


def _read_food101(root: Path, split: str | None) -> ImageFolder:
    """meta/<split>.txt names `apple_pie/1005649`; labels.txt are the names of classes.txt."""
    folders = read_lines(root / "meta" / "classes.txt")
    names = read_lines(root / "meta" / "labels.txt")
    if len(names) != len(folders):
        raise SmidgenError(
            f"{root / 'meta'}: {len(names)} names in labels.txt for {len(folders)} in classes.txt"
        )
    numbers = {name: number for number, name in enumerate(folders)}

    def items() -> Iterator[tuple[Path, int]]:
        for line in read_lines(root / "meta" / f"{split}.txt"):
            label = _known(numbers, line.split("/")[0], root / "meta" / f"{split}.txt")
            yield root / "images" / f"{line}.jpg", label

    return listed(root, names, items())


def _read_sun397(root: Path, split: str | None) -> ImageFolder:
    """ClassName.txt names `/a/abbey`, the partitions `/a/abbey/sun_aaaulhwrhqgejnyt.jpg`."""
    paths = read_lines(first_of(root, "ClassName.txt", "Partitions/ClassName.txt"))
    numbers = {path: number for number, path in enumerate(paths)}
    # "/a/apartment_building/outdoor" -> "apartment building (outdoor)"
    names = []
    for path in paths:
        _, *parts = path.strip("/").split("/")
        if not parts:
            raise SmidgenError(
                f'ClassName.txt in {root} names "{excerpt(path)}"; expected /letter/class'
            )
        name, *detail = [spaced(part) for part in parts]
        names.append(f"{name} ({', '.join(detail)})" if detail else name)
    if split in (None, "all"):
        found = [
            (root / path.strip("/") / image, number)
            for path, number in numbers.items()
            for image in sorted(names_in(root / path.strip("/")))
            if image.endswith(".jpg")
        ]
        return listed(root, names, found)
    kind, _, number = str(split).partition("-")
    name = f"{'Training' if kind == 'train' else 'Testing'}_{number}.txt"
    partition = first_of(root, name, f"Partitions/{name}", f"../{name}", f"../Partitions/{name}")
    lines = read_lines(partition)
    items = [
        (root / line.strip("/"), _known(numbers, line.rpartition("/")[0], partition))
        for line in lines
    ]
    return listed(root, names, items)


DF20M_FILES = {
    "train": "DF20M-train_metadata_PROD.csv",
    "test": "DF20M-public_test_metadata_PROD.csv",
}
DF20M_PLACES = ("", "DF20M-metadata/", "metadata/")


def _read_df20m(root: Path, split: str | None) -> ImageFolder:
    """The metadata of both splits name the classes, so that a label means the same in each."""
    tables = {name: _df20m_table(root, file) for name, file in DF20M_FILES.items()}
    names = sorted({species for rows in tables.values() for _, species in rows if species})
    numbers = {name: number for number, name in enumerate(names)}
    folder = root / "DF20M"
    # The tables write .jpg where the archive has .JPG.
    real = {name.lower(): name for name in names_in(folder)}
    rows = [(folder / real.get(image.lower(), image), name) for image, name in tables[str(split)]]
    bad = [BadFile(path=path, reason="no class: its row has no name") for path, n in rows if not n]
    return listed(root, names, ((path, numbers[name]) for path, name in rows if name), bad)


def _df20m_table(root: Path, name: str) -> list[tuple[str, str]]:
    """(image, scientific name) of every row; the name may be empty."""
    path = first_of(root, *(f"{place}{name}" for place in DF20M_PLACES))
    rows = read_table(path, "image_path", "scientificName")
    found = [(Path(image).name, species) for image, species in rows]
    if nameless := [number for number, (image, _) in enumerate(found, start=2) if not image]:
        raise SmidgenError(f"line {nameless[0]} of {path} names no image")
    return found


def _read_cub(root: Path, split: str | None) -> ImageFolder:
    """Four lists `id value`; train_test_split.txt has 1 for training images."""
    classes = pairs(root / "classes.txt")  # 1 001.Black_footed_Albatross
    numbers = {key: number for number, (key, _) in enumerate(classes)}
    names = [spaced(name.partition(".")[2] or name) for _, name in classes]
    labels = dict(pairs(root / "image_class_labels.txt"))
    is_train = dict(pairs(root / "train_test_split.txt"))
    wanted = {"train": ("1",), "test": ("0",)}.get(str(split), ("0", "1"))

    def items() -> Iterator[tuple[Path, int]]:
        for key, path in pairs(root / "images.txt"):
            if key not in labels or key not in is_train:
                raise SmidgenError(f"image {key} of {root / 'images.txt'} has no class or no split")
            if is_train[key] in wanted:
                label = _known(numbers, labels[key], root / "image_class_labels.txt")
                yield root / "images" / path, label

    return listed(root, names, items())


def _known(numbers: dict[str, int], name: str, path: Path) -> int:
    if name not in numbers:
        raise SmidgenError(f'{path} names the class "{excerpt(name)}", which the classes lack')
    return numbers[name]


SUN_PARTITIONS = tuple(f"{kind}-{n:02d}" for n in range(1, 11) for kind in ("train", "test"))

FOOD_101 = Layout(
    title="Food-101",
    read=_read_food101,
    looked_for="images/<class>/<id>.jpg and meta/ with classes.txt, labels.txt and a list for "
    "each split (food-101.tar.gz)",
    needs=("images", "meta/classes.txt", "meta/labels.txt", "meta/train.txt", "meta/test.txt"),
    folders=("food-101",),
    splits=("train", "test"),
    default_split="train",
)
SUN397 = Layout(
    title="SUN397",
    read=_read_sun397,
    looked_for="ClassName.txt and folders a/ to y/ of images (SUN397.tar.gz); for train-01 to "
    "test-10 also Training_01.txt to Testing_10.txt (Partitions.zip), there or in Partitions/",
    needs=("ClassName.txt|Partitions/ClassName.txt", "a|b|c"),
    folders=("SUN397",),
    splits=("all", *SUN_PARTITIONS),
    default_split="all",
)
DF20M = Layout(
    title="DF-20M mini",
    read=_read_df20m,
    looked_for=f"DF20M/ with the images (DF20M-images.tar.gz), and {DF20M_FILES['train']} and "
    f"{DF20M_FILES['test']} (DF20M-metadata.zip)",
    needs=("DF20M", "|".join(f"{place}{DF20M_FILES['train']}" for place in DF20M_PLACES)),
    folders=("DF20M-images",),
    splits=("train", "test"),
    default_split="train",
)
CUB = Layout(
    title="CUB-200-2011",
    read=_read_cub,
    looked_for="images/ and the lists images.txt, classes.txt, image_class_labels.txt and "
    "train_test_split.txt (CUB_200_2011.tgz)",
    needs=(
        "images",
        "images.txt",
        "classes.txt",
        "image_class_labels.txt",
        "train_test_split.txt",
    ),
    folders=("CUB_200_2011",),
    splits=("train", "test", "all"),
    default_split="train",
)
