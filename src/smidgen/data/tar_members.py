"""Where the files of a tar archive lie in it: names, offsets and sizes, nothing unpacked.

The standard library's tarfile takes a damaged header for the end of the archive, and twice as long
for each member, which counts with a million of them. Format: POSIX.1-2001 pax and GNU tar.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from smidgen.errors import SmidgenError, shown
from smidgen.files.reading import Unreadable, size_of

BLOCK = 512
REGULAR = b"0\0007"
FOLDER, GNU_SPARSE, PAX_GLOBAL = b"5", b"S", b"g"
ABOUT_NEXT = PAX, GNU_LONG_NAME, GNU_LONG_LINK = b"x", b"L", b"K"  # they tell of the next file
WITHOUT_CONTENT = {
    b"1": "a link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
}
MAX_HEADER_BYTES = 2**20  # of a pax header or a long name
SPACES = 8 * ord(" ")


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive; `odd` is what it is if it is no regular one and has no content."""

    name: str
    offset: int
    size: int
    odd: str | None = None


class DamagedTar(ValueError):
    """Why an archive cannot be read to its end."""


def tar_members(path: Path, wanted: Callable[[str], int]) -> list[tuple[Member, bytes]]:
    """Every file of an archive in its order but the folders, and the first `wanted(name)` bytes of
    each.

    Raises: SmidgenError if it is no tar archive, or damaged or cut off.
    """
    try:
        length = size_of(path)
        with path.open("rb") as file:
            return [(m, _content(file, m, wanted(m.name))) for m in _walk(file, length)]
    except (OSError, ValueError, Unreadable) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise SmidgenError(
            f'the shard "{shown(str(path))}" is no tar file, or damaged or cut off: {reason}; '
            "fetch it again"
        ) from error


def _content(file: BinaryIO, member: Member, most: int) -> bytes:
    if not most or not member.size:
        return b""
    file.seek(member.offset)
    return file.read(min(most, member.size))


def _walk(file: BinaryIO, length: int) -> Iterator[Member]:
    """All but folders up to the block of zeros that ends an archive."""
    place = 0
    override: dict[str, str] = {}
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if header == bytes(BLOCK):
            return
        if len(header) < BLOCK:
            raise DamagedTar(f"it ends at byte {length:,} without an end mark")
        _check(header, place)
        kind = header[156:157]
        size = _size(header, override, place)
        start = place + BLOCK
        place = start + -(-size // BLOCK) * BLOCK
        if start + size > length:
            raise DamagedTar(f"a file in it reaches to byte {start + size:,} of {length:,}")
        if kind in ABOUT_NEXT:
            if size > MAX_HEADER_BYTES:
                raise DamagedTar(f"a header of {size:,} bytes")
            data = file.read(size)
            if kind == PAX:
                override |= _pax(data)
            elif kind == GNU_LONG_NAME:
                override["path"] = _text(data.split(b"\0")[0])
            continue
        if kind == GNU_SPARSE or any(key.startswith("GNU.sparse") for key in override):
            raise DamagedTar("it has sparse files, which cannot be read in place")
        name = override.get("path") or _name(header)
        # the first tars had no kind for folders
        if kind not in (FOLDER, PAX_GLOBAL) and not name.endswith("/"):
            odd = None if kind in REGULAR else WITHOUT_CONTENT.get(kind, "of an unknown kind")
            yield Member(name, start, size, odd)
        if kind != PAX_GLOBAL:
            override = {}


def _check(header: bytes, place: int) -> None:
    """Raises DamagedTar unless the checksum is right; it counts its own field as spaces."""
    total = sum(header) - sum(header[148:156]) + SPACES
    if total != _number(header[148:156], place):
        raise DamagedTar(f"the header at byte {place:,} has a wrong checksum")


def _size(header: bytes, override: dict[str, str], place: int) -> int:
    """The bytes behind a header. Links, folders and devices have none, whatever is written there:
    of a link it is the size of what it leads to.
    """
    kind, given = header[156:157], override.get("size")
    if kind in (*WITHOUT_CONTENT, FOLDER):
        return 0
    if kind in ABOUT_NEXT or given is None:
        return _number(header[124:136], place)
    if not (given.isascii() and given.isdecimal()):
        raise DamagedTar(f'a pax header with the size "{shown(given[:40])}"')
    return int(given)


def _number(field: bytes, place: int) -> int:
    """Octal digits; or, for large files, GNU's base 256 marked by the first bit."""
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big") + ((field[0] & 0x7F) << 8 * (len(field) - 1))
    digits = field.split(b"\0")[0].strip()
    if digits.strip(b"01234567"):  # a sign too: a negative size would lead back for ever
        raise DamagedTar(f"the header at byte {place:,} has no number where one belongs")
    return int(digits or b"0", 8)


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
        digits, space, _ = data[place : place + 8].partition(b" ")
        end = place + int(digits) if space and digits.isdigit() else place
        key, equals, value = data[place + len(digits) + 1 : end - 1].partition(b"=")
        if not place < end <= len(data) or not equals:
            raise DamagedTar("a pax header that cannot be read")
        found[_text(key)] = _text(value)
        place = end
    return {key: v for key, v in found.items() if key in ("path", "size") or "sparse" in key}
