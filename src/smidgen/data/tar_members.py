"""Where the files of a tar archive lie in it: names, offsets and sizes, nothing unpacked.

The standard library's tarfile takes a damaged header for the end of the archive, and twice as long
for each member, which counts with a million of them. Format: POSIX.1-2001 pax and GNU tar.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from smidgen.errors import SmidgenError

BLOCK = 512
REGULAR = b"0\0007"
PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_SPARSE = b"x", b"g", b"L", b"S"
MAX_HEADER_BYTES = 2**20  # of a pax header or a long name
SPACES = 8 * ord(" ")


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    name: str
    offset: int
    size: int


class DamagedTar(ValueError):
    """Why an archive cannot be read to its end."""


def tar_members(path: Path, keep: frozenset[str]) -> list[tuple[Member, bytes | None]]:
    """Every regular file of an archive in its order, and the content of those whose name ends in
    one of `keep` and that are small.

    Raises:
        SmidgenError: it is no tar archive, or damaged or cut off.
    """
    try:
        with path.open("rb") as file:
            length = path.stat().st_size
            return [
                (member, _content(file, member) if _suffix(member.name) in keep else None)
                for member in _walk(file, length)
            ]
    except (OSError, ValueError) as error:
        raise SmidgenError(
            f'the shard "{path}" is no tar file, or damaged or cut off: {error}; fetch it again'
        ) from error


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _content(file: BinaryIO, member: Member) -> bytes | None:
    if member.size > MAX_HEADER_BYTES:
        return None
    file.seek(member.offset)
    return file.read(member.size)


def _walk(file: BinaryIO, length: int) -> Iterator[Member]:
    """The regular files up to the block of zeros that ends an archive."""
    place, override = 0, {}
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        if len(header) < BLOCK:
            raise DamagedTar(f"it ends at byte {length:,} without an end mark")
        _check(header, place)
        kind = header[156:157]
        size = int(override.get("size", -1))
        size = _number(header[124:136], place) if size < 0 else size
        start = place + BLOCK
        place = start + -(-size // BLOCK) * BLOCK
        if start + size > length:
            raise DamagedTar(f"a file in it reaches to byte {start + size:,} of {length:,}")
        if kind in (PAX, GNU_LONG_NAME):
            if size > MAX_HEADER_BYTES:
                raise DamagedTar(f"a header of {size:,} bytes")
            data = file.read(size)
            override |= _pax(data) if kind == PAX else {"path": _text(data.split(b"\0")[0])}
            continue
        if kind == GNU_SPARSE or any(key.startswith("GNU.sparse") for key in override):
            raise DamagedTar("it has sparse files, which cannot be read in place")
        if kind in REGULAR:
            yield Member(override.get("path") or _name(header), start, size)
        if kind != PAX_GLOBAL:
            override = {}


def _check(header: bytes, place: int) -> None:
    """Raises DamagedTar unless the checksum is right; it counts its own field as spaces."""
    total = sum(header) - sum(header[148:156]) + SPACES
    if total != _number(header[148:156], place):
        raise DamagedTar(f"the header at byte {place:,} has a wrong checksum")


def _number(field: bytes, place: int) -> int:
    """Octal digits; or, for large files, GNU's base 256 marked by the first bit."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") + ((field[0] & 0x7F) << 8 * (len(field) - 1))
    digits = field.split(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError as error:
        raise DamagedTar(f"the header at byte {place:,} has no number where one belongs") from error


def _name(header: bytes) -> str:
    name = _text(header[:100].split(b"\0")[0])
    # POSIX archives split long names in two; GNU's header has other things in that place.
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return f"{_text(prefix)}/{name}" if prefix else name


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """Records `length key=value` and a line break, the length that of the whole record."""
    found: dict[str, str] = {}
    place = 0
    while place < len(data) and data[place] != 0:
        digits, _, _ = data[place:].partition(b" ")
        end = place + int(digits)
        key, equals, value = data[place + len(digits) + 1 : end - 1].partition(b"=")
        if end <= place or not equals:
            raise DamagedTar("a pax header that cannot be read")
        found[_text(key)] = _text(value)
        place = end
    return {key: v for key, v in found.items() if key in ("path", "size") or "sparse" in key}
