"""The files of a base by their SHA-256, so that two people can tell whether theirs are the same.

No list of right hashes is kept here: where nobody published one, a file is recorded, not judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smidgen.files.reading import sha256_of
from smidgen.models.base import Base
from smidgen.models.codec import AutoencoderCodec
from smidgen.verification.check import Check

SUFFIXES = (".safetensors", ".pt", ".pth", ".json", ".txt", ".model")


def check_files(base: Base) -> Check:
    """Records size and SHA-256 of what the base was read from."""
    found = {
        name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path, name in files_of(base).items()
    }
    said = f"{len(found)} files recorded; no published hash of them is known here"
    return Check(
        name="files",
        status="not possible",
        found=said if found else "the base comes from no file",
        facts={"fingerprint": base.fingerprint, "files": found},
    )


def files_of(base: Base) -> dict[Path, str]:
    """Its own files and those of its codec, with names from the folder on in which they were found:
    where that lies is nobody's business. Of a single file that was unpacked that file.
    """
    places = [Path(base.name)] if Path(base.name).is_file() else [base.source]
    if isinstance(base.codec, AutoencoderCodec):
        places.append(base.codec.folder)
    found: dict[Path, str] = {}
    for place in (place.absolute() for place in places if place is not None):
        for path in _below(place):
            found.setdefault(path, path.relative_to(place.parent).as_posix())
    return found


def _below(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for path in sorted(place.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(place).parts)
        if path.suffix in SUFFIXES and path.is_file() and not hidden:
            yield path
