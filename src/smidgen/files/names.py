"""Names as people gave them, of classes and of files: which of them records can hold, and how one
becomes part of a file's name. What something is called never changes by how it is shown, which is
`shown` in errors.py.
"""

from __future__ import annotations

import hashlib
import re

from smidgen.errors import SmidgenError, shown

MOST_SHOWN = 160  # characters of an excerpt
MOST_PART_BYTES = 200  # of a file's 255: the rest is for a prefix, a number and a suffix

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\.|$)", re.IGNORECASE)


def excerpt(text: str) -> str:
    """`shown`, of the beginning of what may be long: a line of somebody's list, say."""
    return shown(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…")


def check_utf8(name: str, what: str) -> None:
    """Refuses a name of a file system that is not UTF-8: no record could hold it.

    Raises: SmidgenError that begins with `what`, such as "the folder".
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SmidgenError(
            f'{what} "{shown(name)}" has a name that is not UTF-8, which no record can hold: '
            "rename it (convmv -f latin1 -t utf8 --notest renames what is in Latin-1)"
        ) from error


def file_part(name: str, most: int = MOST_PART_BYTES) -> str:
    """A class name or a prompt as part of a file's or folder's name on any system, of at most
    `most` bytes (16 or more) of UTF-8.

    A name that must be changed for it (a slash, a reserved name, a dot or space at its end, too
    many bytes) ends in a sketch of the whole name, so that different names stay different.
    """
    part = _UNSAFE.sub("_", name).rstrip(". ")
    if _RESERVED.match(part):
        part = f"_{part}"
    if part == name and part and len(part.encode()) <= most:
        return part
    sketch = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    kept = part.encode()[: most - 1 - len(sketch)].decode("utf-8", "ignore")
    return f"{kept.rstrip('. ')}~{sketch}"
