"""A folder of drawn images: one PNG an image, and sample.json, which says how they were made."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from PIL import Image

from smidgen.errors import SmidgenError, UsageError
from smidgen.files.names import file_part
from smidgen.files.reading import Unreadable, fit, read_json
from smidgen.files.standing import START_OVER, Standing, standing
from smidgen.files.writing import write_json, write_png
from smidgen.sampling.config import SamplingFacts
from smidgen.sampling.own_settings import KEYWORD, own_text

if TYPE_CHECKING:
    from smidgen.sampling.draw import Drawing, Report

RECORD = "sample.json"
DEFAULT_SAMPLERS = ("ddpm", "euler")  # what no sampler means, and what the record then says


class SampleRecord(msgspec.Struct, kw_only=True):
    """sample.json: the settings, what each file shows, and whether all of them are there."""

    settings: dict[str, Any] = {}
    images: dict[str, str] = {}
    finished: bool = True


def read_record(folder: Path) -> SampleRecord | None:
    """The record in the folder, None without one.

    Raises: SmidgenError if there is one that is damaged, or another program's.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = read_json(path, SampleRecord)
        fit(record.settings, SamplingFacts)
    except Unreadable as error:
        raise SmidgenError(
            f"{path} is no record of smidgen sample, or damaged ({error.reason}); sample into "
            "another folder, or move it elsewhere"
        ) from error
    return record


def standing_of(folder: Path, settings: Mapping[str, Any], *, force: bool = False) -> Standing:
    """How images of these settings stand to what the folder holds.

    Raises: UsageError if it holds other pictures or, without `force`, images of other settings or
        another program's record.
    """
    pictures = {path.name for path in folder.glob("*.png")} if folder.is_dir() else set()
    try:
        record = read_record(folder)
    except SmidgenError as error:
        if not force:  # pictures are ours by nothing else
            raise UsageError(f"{error}" + ("" if pictures else f", or {START_OVER}")) from error
        record = None
    ours = set(record.images) if record is not None else set()
    if pictures - ours:
        raise UsageError(
            f"{folder} holds other pictures, such as {min(pictures - ours)}; "
            "give a new or an empty folder"
        )
    before = dict(record.settings) if record is not None else None
    if before is not None and settings.get("sampler") is None:
        before |= {"sampler": None} if before.get("sampler") in DEFAULT_SAMPLERS else {}
    finished = record is not None and record.finished and bool(ours) and pictures == ours
    return standing(folder, "images", before, settings, finished=finished, force=force)


def fill_folder(
    drawing: Drawing,
    folder: Path,
    settings: Mapping[str, Any],
    report: Report | None = None,
    *,
    own: bool = False,
) -> SampleRecord:
    """Draw and write the images; what an earlier record lists goes first. The record's `finished`
    turns true with the last image. `own`: the settings are those of `smidgen sample`, and each
    image carries them too.

    Raises: SmidgenError if the disk refuses.
    """
    names = {number: drawing.name(number) for number in drawing.numbers}
    files = {number: image_name(number, name) for number, name in names.items()}
    settings = {**settings, "sampler": drawing.config.sampler}
    images = {files[number]: name for number, name in names.items()}
    record = SampleRecord(settings=settings, images=images, finished=False)
    remove_images(folder)
    write_json(msgspec.to_builtins(record), folder / RECORD)
    # an error must not stand behind a half-drawn progress bar
    with contextlib.closing(drawing.batches(report=report)) as batches:
        for numbers, pixels in batches:
            for number, image in zip(numbers, pixels, strict=True):
                text = (KEYWORD, own_text(drawing, number, settings)) if own else None
                write_png(Image.fromarray(image), folder / files[number], text=text)
    record.finished = True
    write_json(msgspec.to_builtins(record), folder / RECORD)
    return record


def remove_images(folder: Path) -> None:
    """Remove the images that the folder's record lists, as far as sampling gave them their names:
    whatever else a record says is not ours.
    """
    with contextlib.suppress(SmidgenError):
        record = read_record(folder)
        for file, shown in (record.images if record else {}).items():
            number = file.partition("-")[0]
            if number.isdecimal() and number.isascii() and file == image_name(int(number), shown):
                (folder / file).unlink(missing_ok=True)


def image_name(number: int, shown: str) -> str:
    """The file of an image: its number and what it shows, as a name on any system."""
    return f"{number:06d}-{file_part(shown)}.png"
