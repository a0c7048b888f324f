"""Image sets of the Hugging Face `datasets` library: saved on disk, or fetched by their hub id.

The only importer of that library, which is optional. Images keep the bytes they were stored with:
nothing is decoded and encoded again on the way.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from smidgen.data.caption_tables import COLUMNS
from smidgen.data.folder import ImageFile, ImageFolder
from smidgen.data.images import UnusableImage, read_bytes
from smidgen.data.layout import Layout, contents, only_used, safe_names
from smidgen.data.listing import BadFile
from smidgen.errors import SmidgenError
from smidgen.files.reading import in_one_line

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
IMAGE_COLUMNS = ("image", "img", "picture")
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "fine_label")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TableRow:
    """The image in one row of a table, whose cells are {"bytes", "path"}."""

    table: Any
    column: str
    row: int

    def read(self) -> bytes:
        """The bytes as they are stored. Raises: UnusableImage if there are none."""
        try:
            cell = self.table[self.row][self.column]
        except Exception as error:  # the library's and Arrow's own for a damaged file
            raise UnusableImage("unreadable", in_one_line(error)) from error
        if cell is None:
            raise UnusableImage("unreadable", "an empty cell")
        if cell.get("bytes") is not None:
            if not cell["bytes"]:
                raise UnusableImage("unreadable", "empty file")
            return cell["bytes"]
        if not cell.get("path"):
            raise UnusableImage("unreadable", "an empty cell")
        return read_bytes(Path(cell["path"]))


def read_dataset(root: Path, split: str | None) -> ImageFolder:
    """The rows of one split. `root`: a folder written by `save_to_disk`, or a hub id.

    Classes are those of the label column (names of a ClassLabel, or its values), without those that
    no row has; without a label column all images are one class. Captions are those of a column of
    texts, or of lists of them, called text, caption or prompt.

    Raises: SmidgenError if the library is missing, there is no such data set or split, or no column
        of images.
    """
    table = _split_of(_load(root), root, split)
    image, label = _columns(table, root)
    names, labels = _labels(table, label, root.name)
    captions = _captions(table, {image, label})
    cells = table.select_columns([image]).cast_column(image, _library().Image(decode=False))
    cells = cells.with_format(None)
    files: list[ImageFile] = []
    bad: list[BadFile] = []
    folder = root / (split or "rows")
    for row, number in enumerate(labels):
        # The name has no suffix: the format is in the bytes.
        path = folder / f"{row:08d}"
        if number is None:
            bad.append(
                BadFile(path=path, reason=f'no class: "{label}" is empty or none of its names')
            )
            continue
        source = TableRow(table=cells, column=image, row=row)
        files.append(
            ImageFile(path=path, class_number=number, source=source, captions=captions[row])
        )
    found = ImageFolder(
        root=root,
        classes=safe_names(names),
        files=tuple(files),
        bad=tuple(bad),
        flat=label is None,
    )
    return only_used(found)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise SmidgenError(
            'the layout hf needs the library "datasets", which is not installed: '
            "pip install datasets"
        ) from error
    return datasets


def _load(root: Path) -> Any:
    """A Dataset, or a DatasetDict of splits."""
    saved = any((root / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if not saved and (root.exists() or not HUB_ID.fullmatch(root.as_posix())):
        raise SmidgenError(
            f'"{root}" is no data set saved by save_to_disk and no hub id (owner/name): looked for '
            f"dataset_dict.json or state.json; found: {contents(root)}"
        )
    for path in root.rglob("*") if saved else ():
        if not path.is_file() and not path.is_dir():  # a pipe would block the library
            raise SmidgenError(f'{path} is no ordinary file: remove it from "{root}"')
    library = _library()
    try:
        if saved:
            return library.load_from_disk(str(root))
        return library.load_dataset(root.as_posix())
    # The library answers with errors of many kinds: missing, private, offline, of another version.
    except Exception as error:
        raise SmidgenError(f'cannot load the data set "{root}": {in_one_line(error)}') from error


def _split_of(loaded: Any, root: Path, split: str | None) -> Any:
    if not isinstance(loaded, dict):  # a DatasetDict is one
        own = str(loaded.split) if loaded.split is not None else None
        if split not in (None, own):
            raise SmidgenError(
                f'"{root}" has no splits{f" but is {own} itself" if own else ""}: '
                f'leave "{split}" away'
            )
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    if split not in loaded:
        asked = f'no split "{split}"' if split is not None else "several splits"
        raise SmidgenError(f'"{root}" has {asked}; give one of: {", ".join(loaded)}')
    return loaded[split]


def _columns(table: Any, root: Path) -> tuple[str, str | None]:
    """The columns of the image and of its class."""
    library = _library()
    features = table.features
    images = [name for name, kind in features.items() if isinstance(kind, library.Image)]
    if not images:
        raise SmidgenError(
            f'"{root}" has no column of images; its columns: '
            f"{', '.join(f'{name} ({type(kind).__name__})' for name, kind in features.items())}"
        )
    labels = [name for name, kind in features.items() if isinstance(kind, library.ClassLabel)]
    if not labels:
        plain = [n for n, kind in features.items() if getattr(kind, "dtype", "") in PLAIN]
        labels = [name for name in LABEL_COLUMNS if name in plain][:1]
    return (
        _one_of(images, IMAGE_COLUMNS, root, "images"),
        _one_of(labels, LABEL_COLUMNS, root, "labels") if labels else None,
    )


PLAIN = ("string", "large_string", "int8", "int16", "int32", "int64", "uint8", "uint16")


def _one_of(found: list[str], known: tuple[str, ...], root: Path, what: str) -> str:
    if len(found) == 1:
        return found[0]
    for name in known:
        if name in found:
            return name
    raise SmidgenError(
        f'"{root}" has several columns of {what} ({", ".join(found)}) and none is called '
        f"{known[0]}: rename one"
    )


def _labels(table: Any, column: str | None, fallback: str) -> tuple[list[str], list[int | None]]:
    """Class names, and the class of every row; None where it is empty, -1 as hidden ones are, or
    none of the names.

    Raises: SmidgenError if the names are none.
    """
    if column is None:
        return [fallback or "images"], [0] * len(table)
    values = table.select_columns([column]).with_format(None)[column][:]
    kind = table.features[column]
    if isinstance(kind, _library().ClassLabel):
        names = kind.names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SmidgenError(f'the classes of the column "{column}" are no list of names')
        return names, [v if v is not None and 0 <= v < len(names) else None for v in values]
    known = sorted({value for value in values if value not in (None, "", -1)})
    numbers = {value: number for number, value in enumerate(known)}
    return [str(value) for value in known], [numbers.get(value) for value in values]


def _captions(table: Any, others: set[str | None]) -> list[tuple[str, ...]]:
    """The captions of every row: of the first column of captions that is used for nothing else."""
    column = next((n for n in COLUMNS if n in table.features and n not in others), None)
    if column is None:
        return [()] * len(table)
    cells = table.select_columns([column]).with_format(None)[column][:]
    return [_texts(cell) for cell in cells]


def _texts(cell: Any) -> tuple[str, ...]:
    """A text or a list of texts, without empty ones; nothing of anything else."""
    texts = cell if isinstance(cell, list) else [cell]
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


HF = Layout(
    title="a Hugging Face image set",
    read=read_dataset,
    looked_for="a folder written by save_to_disk, or a hub id (owner/name), with a column of "
    "images and one of labels; needs the library datasets",
)
