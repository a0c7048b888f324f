"""The one way in which a file is written: beside its name, flushed, renamed. It is whole or not at
all, and what stood there before stays until then.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from smidgen.errors import SmidgenError
from smidgen.files.png_text import text_chunk
from smidgen.files.reading import in_one_line

if TYPE_CHECKING:
    from PIL.Image import Image

REMEDY = "make room or give a place where you may write"
PARTIAL = ".partial"
MOST_NAME_BYTES = 255  # of a file's name, on all systems in use


@contextmanager
def whole_file(path: Path | str, remedy: str = REMEDY) -> Iterator[Path]:
    """A name beside `path` to write to; what is there at the end of the `with` becomes `path`.

    Raises: SmidgenError if the folder cannot be made or the disk refuses, ending in `remedy`.
    """
    path = Path(path)
    partial = partial_of(path)
    try:
        with writing(path, remedy, RuntimeError):  # torch's word for a write that failed
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            flush(partial)
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path | str, remedy: str = REMEDY, *others: type[Exception]) -> Iterator[None]:
    """Whatever the disk refuses within, told in one line that names `path`; so are `others`.

    Raises: SmidgenError.
    """
    try:
        yield
    except (OSError, SafetensorError, *others) as error:
        reason = in_one_line(getattr(error, "strerror", None) or error)
        raise SmidgenError(f"cannot write {path}: {reason}; {remedy}") from error


def write_text(text: str, path: Path | str, remedy: str = REMEDY) -> None:
    """Write UTF-8. Raises: SmidgenError as `whole_file`."""
    with whole_file(path, remedy) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(document: Any, path: Path | str, remedy: str = REMEDY) -> None:
    """Write a document as indented JSON. Raises: SmidgenError as `whole_file`."""
    write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", path, remedy)


def write_png(
    image: Image, path: Path | str, remedy: str = REMEDY, *, text: tuple[str, str] | None = None
) -> None:
    """Write a picture, with a `text` in it as (keyword, text), which `read_png_text` finds again.

    Raises: SmidgenError as `whole_file`.
    """
    with whole_file(path, remedy) as partial:
        image.save(partial, format="PNG", pnginfo=None if text is None else text_chunk(*text))


def try_writing(folder: Path) -> None:
    """Make the folder and a file in it, and leave everything as it was. Raises: OSError."""
    absent = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    finally:
        for part in absent:
            with contextlib.suppress(OSError):
                part.rmdir()


def partial_of(path: Path) -> Path:
    """A name of nobody else's beside `path` while it is written: hidden, and never too long."""
    ending = f".{uuid.uuid4().hex[:12]}{PARTIAL}"
    kept = os.fsencode(path.name)[: MOST_NAME_BYTES - 1 - len(ending)]
    return path.with_name(f".{os.fsdecode(kept)}{ending}")


def flush(path: Path) -> None:
    """Have the disk really hold it: a rename must not become visible before the content."""
    if path.is_dir() and os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
