"""Arrays in a .npz: what they are is known, and checked, before one of them is unpacked.

A zip of a few megabytes can claim, and unpack to, any size; so nothing here allocates what a file
only says. What the arrays mean is in statistics.py and sample_batches.py.
"""

from __future__ import annotations

import io
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from smidgen.errors import SmidgenError

SUFFIX = ".npy"
MOST_ARRAYS = 1000
MOST_HEADER_BYTES = 10_000  # numpy's own limit, of which it learns only after reading
# What arrays may unpack to: this much, or so many times their file. Numbers hardly get smaller by
# packing, indices of sorted classes by far; a bomb does a thousandfold.
MOST_BYTES = 2**27
MOST_TIMES = 8
# What reading a damaged or foreign archive raises; RuntimeError: encrypted, or packed otherwise.
DAMAGED = (
    *(ValueError, OSError, EOFError, RuntimeError),
    *(TypeError, LookupError, SyntaxError, MemoryError, OverflowError, struct.error),  # of headers
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an array says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran_order: bool

    @property
    def num_bytes(self) -> int:
        """Its size in memory."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def unreadable(path: Path, why: object) -> SmidgenError:
    """The error of a file that is no whole .npz."""
    return SmidgenError(f"{path} is not a readable .npz of statistics or images: {str(why)[:160]}")


def read_headers(path: Path, streamed: Collection[str] = ()) -> dict[str, Header]:
    """The arrays of a file by name. Those `streamed` are read piece by piece and may be large.

    Raises: SmidgenError if it is no whole .npz, or the others would unpack to far more than it has.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [one for one in archive.infolist() if one.filename.endswith(SUFFIX)]
            if len(entries) > MOST_ARRAYS:
                raise ValueError(f"{len(entries):,} arrays; at most {MOST_ARRAYS:,} are read")
            found = {one.filename.removesuffix(SUFFIX): _header(archive, one) for one in entries}
    except DAMAGED as error:
        raise unreadable(path, error) from error
    total = sum(one.num_bytes for name, one in found.items() if name not in streamed)
    if total > max(MOST_BYTES, MOST_TIMES * path.stat().st_size):
        raise unreadable(path, f"its {path.stat().st_size:,} bytes would unpack to {total:,}")
    return found


def read_array(path: Path, name: str) -> NDArray[Any]:
    """An array whose header was found good. Raises: SmidgenError if the file is damaged there."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(name + SUFFIX) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGED as error:
        raise unreadable(path, error) from error


def _header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Header:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename} is packed otherwise than numpy does")
    with archive.open(entry) as file:
        header = read_header(file)
        if header.num_bytes > entry.file_size - file.tell():
            raise ValueError(f"{entry.filename} says {header} and has {entry.file_size:,} bytes")
    return header


def read_header(file: IO[bytes]) -> Header:
    """The header of the array that begins here; then the file stands at its numbers.

    Raises: one of DAMAGED.
    """
    start = file.read(np.lib.format.MAGIC_LEN)
    major, minor = np.lib.format.read_magic(io.BytesIO(start))
    if (major, minor) not in ((1, 0), (2, 0)):
        raise ValueError(f"numpy's format {major}.{minor}")
    size = file.read(2 * major)
    length = int.from_bytes(size, "little")
    if length > MOST_HEADER_BYTES:
        raise ValueError(f"a header of {length:,} bytes; at most {MOST_HEADER_BYTES:,} are read")
    read = getattr(np.lib.format, f"read_array_header_{major}_0")
    shape, fortran_order, dtype = read(io.BytesIO(size + file.read(length)))
    if min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape}")
    return Header(shape=shape, dtype=dtype, fortran_order=fortran_order)
