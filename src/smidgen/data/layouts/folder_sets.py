"""Data sets whose folders are their classes, in a tree of their own: Caltech-101, ArtBench-10."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from smidgen.data.folder import ImageFile, ImageFolder
from smidgen.data.layout import (
    Layout,
    check_inside,
    contents,
    listed,
    names_in,
    read_table,
    safe_names,
    spaced,
)
from smidgen.data.listing import BadFile, list_class
from smidgen.errors import SmidgenError

CALTECH_FOLDER = "101_ObjectCategories"
BACKGROUND = "BACKGROUND_Google"

# The ten styles as the paper writes them (Liao et al. 2022).
STYLES = {
    "art_nouveau": "Art Nouveau",
    "baroque": "Baroque",
    "expressionism": "Expressionism",
    "impressionism": "Impressionism",
    "post_impressionism": "Post-Impressionism",
    "realism": "Realism",
    "renaissance": "Renaissance",
    "romanticism": "Romanticism",
    "surrealism": "Surrealism",
    "ukiyo_e": "Ukiyo-e",
}


def class_folders(root: Path, folders: Iterable[tuple[Path, str]]) -> ImageFolder:
    """Every image in each of the folders, named by the second of the pair.

    Raises: SmidgenError if a folder cannot be read, or does not lie below `root`.
    """
    names: list[str] = []
    files: list[ImageFile] = []
    bad: list[BadFile] = []
    for label, (folder, name) in enumerate(folders):
        check_inside(root, folder)
        images, skipped = list_class(folder)
        names.append(name)
        files += [ImageFile(path=path, class_number=label) for path in images]
        bad += skipped
    return ImageFolder(root=root, classes=safe_names(names), files=tuple(files), bad=tuple(bad))


def _read_caltech(root: Path, split: str | None) -> ImageFolder:
    """The archive has no lists: `objects` are its 101 categories, `all` the background clutter too.

    Without regard to case, as the names are a mixture.
    """
    folder = root / CALTECH_FOLDER
    found = (name for name in names_in(folder) if not name.startswith("."))
    names = sorted((name for name in found if (folder / name).is_dir()), key=str.lower)
    if split == "all" and BACKGROUND not in names:
        raise SmidgenError(f'looked for {BACKGROUND} in "{folder}"; found: {contents(folder)}')
    wanted = [name for name in names if split == "all" or name != BACKGROUND]
    if not wanted:
        raise SmidgenError(f'looked for a folder a category in "{folder}"; found: none')
    return class_folders(root, [(folder / name, spaced(name)) for name in wanted])


def _read_artbench(root: Path, split: str | None) -> ImageFolder:
    """Folders train/ and test/ of styles; or styles alone, and the split in ArtBench-10.csv."""
    if (root / "train").is_dir():
        folder = root / str(split)
        absent = [style for style in STYLES if not (folder / style).is_dir()]
        if absent:
            raise SmidgenError(
                f'looked for the style {", ".join(absent)} in "{folder}"; found: {contents(folder)}'
            )
        return class_folders(root, [(folder / style, name) for style, name in STYLES.items()])
    numbers = {style: number for number, style in enumerate(STYLES)}
    places = (root / ARTBENCH_TABLE, root.parent / ARTBENCH_TABLE)
    table = next((path for path in places if path.is_file()), None)
    if table is None:
        raise SmidgenError(
            f'looked for {ARTBENCH_TABLE} in "{root}", which says what is train and test '
            "where the folders do not"
        )
    items = [
        (root / style / name, numbers[style])
        for name, style, its_split in _artbench_rows(table)
        if its_split == split
    ]
    return listed(root, list(STYLES.values()), items)


ARTBENCH_TABLE = "ArtBench-10.csv"


def _artbench_rows(path: Path) -> list[tuple[str, ...]]:
    """(image, style, split) of every row."""
    rows = read_table(path, "name", "label", "split")
    for number, (name, style, _) in enumerate(rows, start=2):
        if not name or style not in STYLES:
            raise SmidgenError(f"line {number} of {path} names no image of one of the ten styles")
    return rows


CALTECH_101 = Layout(
    title="Caltech-101",
    read=_read_caltech,
    looked_for=f"{CALTECH_FOLDER}/<category>/image_0001.jpg (101_ObjectCategories.tar.gz, which "
    "lies in caltech-101.zip)",
    needs=(CALTECH_FOLDER,),
    folders=("caltech-101", "caltech101"),
    splits=("objects", "all"),
    default_split="objects",
)
ARTBENCH_10 = Layout(
    title="ArtBench-10",
    read=_read_artbench,
    looked_for="train/ and test/ with a folder for each of the ten styles "
    "(artbench-10-imagefolder-split.tar); or those ten folders (artbench-10-imagefolder.tar) and "
    f"{ARTBENCH_TABLE}",
    needs=("train/art_nouveau|art_nouveau", "train/ukiyo_e|ukiyo_e"),
    folders=("artbench-10-imagefolder-split", "artbench-10-imagefolder"),
    splits=("train", "test"),
    default_split="train",
)
