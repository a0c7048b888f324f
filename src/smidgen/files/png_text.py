"""A text within a PNG, as an iTXt chunk (PNG specification, third edition, section 11.3.3.4): how
it is read from a file that anybody may have written. `write_png` writes it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from smidgen.files.reading import Unreadable, read_bytes

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_TEXT = 2**22  # bytes


def text_chunk(keyword: str, text: str) -> PngInfo:
    """What Pillow writes this text of."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_itxt(keyword, text)
    return chunks


def read_png_text(path: Path, keyword: str) -> str | None:
    """The text under this keyword, the first of several; None of a PNG without one. A compressed
    one is none of ours, and is not unpacked.

    Raises: Unreadable if it is no PNG, or is cut off or damaged before the text, or the text is too
        long or not UTF-8.
    """
    content = read_bytes(path)
    if not content.startswith(SIGNATURE):
        raise _unreadable(path, "it is no PNG")
    # after the keyword: flag and method of compression, language, keyword in that language
    head = keyword.encode("latin-1") + b"\0\0\0\0\0"
    for kind, body in _chunks(content, path):
        if kind == b"iTXt" and body.startswith(head):
            if len(body) > MOST_TEXT:
                raise _unreadable(path, f"its text has {len(body):,} bytes; at most {MOST_TEXT:,}")
            try:
                return body[len(head) :].decode("utf-8")
            except UnicodeDecodeError as error:
                raise _unreadable(path, "its text is not UTF-8") from error
    return None


def _chunks(content: bytes, path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk up to the end of the picture."""
    place = len(SIGNATURE)
    while place < len(content):
        size, kind = struct.unpack_from(">I4s", content.ljust(place + 8, b"\0"), place)
        body, found = content[place + 8 : place + 8 + size], content[place + 8 + size :][:4]
        if len(found) < 4 or int.from_bytes(found, "big") != zlib.crc32(kind + body):
            raise _unreadable(path, "it is cut off or damaged")
        yield kind, body
        if kind == b"IEND":
            return
        place += 12 + size


def _unreadable(path: Path, reason: str) -> Unreadable:
    return Unreadable(f"cannot read {path}: {reason}", reason)
