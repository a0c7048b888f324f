"""Published data sets as one unpacks their official archives, with their official splits.

`open_images` is the one way in; LAYOUTS names what it reads. A family of layouts is a file here.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from smidgen.data.folder import ImageFolder, Progress, check_classes, check_root, look_at_all, scan
from smidgen.data.hub_images import HF
from smidgen.data.layout import Layout
from smidgen.data.layouts.folder_sets import ARTBENCH_10, CALTECH_101
from smidgen.data.layouts.imagenet import IMAGENET
from smidgen.data.layouts.listed_sets import CUB, DF20M, FOOD_101, SUN397
from smidgen.data.layouts.matlab_sets import FLOWERS_102, STANFORD_CARS
from smidgen.data.webdataset import WEBDATASET
from smidgen.errors import UsageError, closest


def _read_folder(root: Path, split: str | None) -> ImageFolder:
    return scan(root if split is None else root / split, decode=False)


LAYOUTS: dict[str, Layout] = {
    "folder": Layout(
        title="a folder of images",
        read=_read_folder,
        looked_for="a sub-folder for each class, or images; a split is one folder above those",
    ),
    "food-101": FOOD_101,
    "sun397": SUN397,
    "df20m": DF20M,
    "caltech-101": CALTECH_101,
    "cub-200-2011": CUB,
    "artbench-10": ARTBENCH_10,
    "flowers-102": FLOWERS_102,
    "stanford-cars": STANFORD_CARS,
    "imagenet": IMAGENET,
    "webdataset": WEBDATASET,
    "hf": HF,
}


def open_images(
    root: str | Path,
    *,
    layout: str = "folder",
    split: str | None = None,
    decode: bool = True,
    progress: Progress | None = None,
    min_size: int = 8,
) -> ImageFolder:
    """The images of a data set with their classes. `split` None: the layout's default.

    `decode=False` reads names only, as `scan` does; else every image is decoded once, and
    `progress(done, total)` called for each. For the layout hf `root` may be a hub id. The bytes of
    an image come from `ImageFile.read`, as some lie in shards or tables.

    Raises: UsageError for an unknown layout or split; SmidgenError if `root` is not such a data
        set, or a class has no usable image.
    """
    split = resolve_split(layout, split)
    check_root(Path(root))
    known = LAYOUTS[layout]
    listed = known.read(known.find(Path(root)), split)
    listed = dataclasses.replace(listed, layout=layout, split=split, min_size=min_size)
    check_classes(listed)
    return look_at_all(listed, progress)[0] if decode else listed


def resolve_split(layout: str, split: str | None) -> str | None:
    """The split that is read: the given one, or the layout's default.

    Raises: UsageError for an unknown layout, or a split that the layout does not have.
    """
    if layout not in LAYOUTS:
        raise UsageError(f'unknown layout "{layout}"{closest(layout, LAYOUTS)}')
    known = LAYOUTS[layout]
    if split is None:
        return known.default_split
    if known.splits and split not in known.splits:
        raise UsageError(f'{layout} has no split "{split}"{closest(split, known.splits)}')
    return split
