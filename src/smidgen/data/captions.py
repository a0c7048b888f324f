"""The captions of a folder's images: from text files beside them, from the folder's table of
metadata, from their names, or none; those of shards and tables of images lie in these.

A caption belongs to an image by the file it names, never by its position in a list.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from smidgen.data.caption_tables import COLUMNS, TABLES, find_table, key_in, read_table
from smidgen.data.folder import ImageFile, ImageFolder
from smidgen.data.names import CaptionSource
from smidgen.errors import SmidgenError, UsageError, shown
from smidgen.files.reading import read_bytes

SUFFIXES = (".txt", ".caption")  # of a caption beside its image
MOST_CAPTION_BYTES = 2**20
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class CaptionFindings:
    """What is said of captions before a training.

    `images`: those that have a caption, `several`: more than one, of which a step draws one;
    `distinct`: captions that differ. By name: images `without` one, images of which one is `cut`
    at the encoder's length (None: its tokenizer was not asked), text files that are `unmatched`.
    """

    source: str
    images: int
    several: int
    distinct: int
    without: tuple[str, ...]
    cut: tuple[str, ...] | None
    unmatched: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report."""
        if self.source == "none":
            found = ["no captions: images are trained on the prompts of their classes"]
        else:
            total = self.images + len(self.without)
            found = [
                f"{self.images:,} of {total:,} image(s) have captions ({self.source}), "
                f"{self.distinct:,} different ones"
            ]
            if self.several:
                found.append(f"{self.several:,} have several, of which a step draws one")
            found += _named_lines(
                "have none, and are trained as if theirs was dropped", self.without
            )
            found += _named_lines("have one that is cut at the encoder's length", self.cut or ())
        return found + _named_lines(
            "text file(s) are named after no image, and left alone", self.unmatched
        )


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The captions of each image by its path; an image may have several or none. `source` says
    where they were found: txt, metadata.jsonl, metadata.csv, filename, hf, webdataset or none;
    `unmatched` are text files that are named after no image.
    """

    texts: Mapping[Path, tuple[str, ...]]
    source: str
    unmatched: tuple[Path, ...] = ()

    def of(self, folder: ImageFolder) -> tuple[tuple[str, ...], ...]:
        """The captions of each file of a folder, in its order.

        Raises: SmidgenError if none of them has one, and some were found.
        """
        texts = tuple(self.texts[file.path] for file in folder.files)
        if self.source != "none" and not any(texts):
            where = shown(str(folder.root))
            raise SmidgenError(
                f'no image in "{where}" that can be used has a caption ({self.source})'
            )
        return texts

    def findings(self, folder: ImageFolder, cut: Collection[str] | None = None) -> CaptionFindings:
        """The report on the images of `folder`; `cut` are the captions that an encoder cuts."""
        texts = self.of(folder)
        names = [folder.name(file.path) for file in folder.files]
        several = list(zip(names, texts, strict=True))
        return CaptionFindings(
            source=self.source,
            images=sum(map(bool, texts)),
            several=sum(len(own) > 1 for own in texts),
            distinct=len(distinct(texts)),
            without=() if self.source == "none" else tuple(n for n, own in several if not own),
            cut=None
            if cut is None
            else tuple(n for n, own in several if not set(own).isdisjoint(cut)),
            unmatched=tuple(folder.name(path) for path in self.unmatched),
        )


def distinct(texts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """Every caption once, in the order of the images."""
    return tuple(dict.fromkeys(text for own in texts for text in own))


def _named_lines(what: str, names: Collection[str]) -> list[str]:
    """How many there are, and the first of them by name."""
    if not names:
        return []
    more = [f"  … and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else []
    return [f"{len(names):,} {what}", *(f"  {name}" for name in list(names)[:SHOWN]), *more]


def read_captions(folder: ImageFolder, source: CaptionSource = "auto") -> Captions:
    """The captions of a folder's images. `auto`: from text files beside the images, else from the
    folder's table of metadata, else none; where both are there, it must be said which. Of images
    that are no files of their own: those that the data set has.

    Raises: SmidgenError for an empty caption, a table that names an image that is not there or has
        a broken row, text files of which none is beside an image; UsageError where there are none
        of the kind that was asked for, or two kinds and `auto`.
    """
    if source not in get_args(CaptionSource):
        raise UsageError(f'captions is "{source}"; use {", ".join(get_args(CaptionSource))}')
    if source in ("auto", "txt", "jsonl") and _is_packed(folder):
        return _packed(folder, source)
    beside, table = _beside(folder), find_table(folder)
    if source == "auto":
        if beside and table:
            raise UsageError(
                f'"{shown(str(folder.root))}" has captions in text files beside its images and in '
                f"{table.name}: say which with --captions txt or --captions jsonl"
            )
        source = "txt" if beside else "jsonl" if table else "none"
    if source == "txt":
        if not beside:
            raise UsageError(_none_beside(folder))
        return _gathered(
            folder,
            "txt",
            lambda file: _read_text(beside.get(file.path), folder),
            _unmatched(folder),
        )
    if source == "jsonl":
        if table is None:
            raise UsageError(
                f'there is no {" or ".join(TABLES)} in "{shown(str(folder.root))}"; each row has '
                f"file_name and {' or '.join(COLUMNS)}"
            )
        rows = read_table(folder, table)
        return _gathered(folder, table.name, lambda file: rows.get(key_in(folder, file.path), ()))
    if source == "filename":
        return _gathered(folder, source, lambda file: (_named(file.path, folder),))
    return _gathered(folder, source, lambda file: (), _unmatched(folder))


def _is_packed(folder: ImageFolder) -> bool:
    return any(file.source is not None for file in folder.files)


def _packed(folder: ImageFolder, source: CaptionSource) -> Captions:
    if source != "auto":
        raise UsageError(
            f"captions is {source}, and images of layout {folder.layout} are no files that texts "
            "could be beside; give auto for those that the data set has"
        )
    found = any(file.captions for file in folder.files)
    return _gathered(folder, folder.layout if found else "none", lambda file: file.captions)


def _gathered(
    folder: ImageFolder,
    source: str,
    texts: Callable[[ImageFile], tuple[str, ...]],
    unmatched: tuple[Path, ...] = (),
) -> Captions:
    found = {file.path: texts(file) for file in folder.files}
    return Captions(texts=found, source=source, unmatched=unmatched)


def _text_files(folder: ImageFolder) -> list[Path]:
    """What may be captions beside images; files inside shards and tables are none."""
    if _is_packed(folder):
        return []
    return [bad.path for bad in folder.bad if bad.path.suffix.lower() in SUFFIXES]


def _options(path: Path) -> list[Path]:
    """What the caption of an image may be called: its name with another suffix, or behind it."""
    return [
        option
        for suffix in SUFFIXES
        for option in (path.with_suffix(suffix), path.with_name(path.name + suffix))
    ]


def _beside(folder: ImageFolder) -> dict[Path, Path]:
    """The text file of each image that has one."""
    there = set(_text_files(folder))
    if not there:
        return {}
    found = {
        file.path: next((one for one in _options(file.path) if one in there), None)
        for file in folder.files
    }
    return {path: text for path, text in found.items() if text is not None}


def _unmatched(folder: ImageFolder) -> tuple[Path, ...]:
    """The text files named after no image, nor after one that was skipped."""
    texts = _text_files(folder)
    if not texts:
        return ()
    others = [bad.path for bad in folder.bad if bad.path not in texts]
    images = [file.path for file in folder.files]
    named = {option for path in (*images, *others) for option in _options(path)}
    return tuple(path for path in texts if path not in named)


def _none_beside(folder: ImageFolder) -> str:
    others = _text_files(folder)
    example = folder.files[0].path.with_suffix(SUFFIXES[0])
    what = f'no image of "{shown(str(folder.root))}" has a caption beside it'
    if others:
        what += f", and {folder.name(others[0])} is named after none"
    return f"{what}; such as {folder.name(example)} would be"


def _read_text(path: Path | None, folder: ImageFolder) -> tuple[str, ...]:
    """Each line of a text file that is not empty is one caption."""
    if path is None:
        return ()
    try:
        text = read_bytes(path, MOST_CAPTION_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SmidgenError(
            f"the caption {folder.name(path)} is not UTF-8 text ({error.reason} at byte "
            f"{error.start}); save it as UTF-8"
        ) from error
    captions = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not captions:
        raise SmidgenError(
            f"the caption {folder.name(path)} is empty; write one or remove the file"
        )
    return captions


def _named(path: Path, folder: ImageFolder) -> str:
    caption = " ".join(path.stem.replace("_", " ").split())
    if not caption:
        raise SmidgenError(f"the name of {folder.name(path)} gives no caption; rename it")
    return caption
