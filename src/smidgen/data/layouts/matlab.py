"""Reads MATLAB 5 files, in which several published data sets keep their labels and splits.

Only what those hold: numbers, text, cells and structs. Arrays are in column order, as MATLAB has
them. The format: "MAT-File Format", The MathWorks, chapter 1. scipy's reader can end the process on
a damaged file (docs/decisions/0017).
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smidgen.errors import SmidgenError
from smidgen.files.reading import read_bytes

HEADER_BYTES = 128
MOST_BYTES = 2**27  # of a file, and of what its compressed parts unpack to: ten times the longest

Order = Literal["<", ">"]  # little- or big-endian

# Types of stored data (table 1-1).
INT8, COMPRESSED, MATRIX, UTF8, UTF16 = 1, 15, 14, 16, 17
NUMBERS = {
    INT8: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}

# Classes of arrays (table 1-3).
CELL, STRUCT, TEXT = 1, 2, 4
NUMERIC = range(6, 16)
COMPLEX_FLAG = 0x0800


def read_matlab(path: Path) -> dict[str, Any]:
    """The variables of a file by name.

    Numbers become arrays of their shape, text a string (rows joined by line breaks), a cell array a
    list of its cells, a struct array a list of dicts.

    Raises: SmidgenError if it cannot be read, is no MATLAB 5 file, is damaged, or holds something
        else.
    """
    data = read_bytes(path, MOST_BYTES)
    mark = data[126:128]
    if len(data) < HEADER_BYTES or mark not in (b"IM", b"MI"):
        raise SmidgenError(f"{path} is no MATLAB 5 file (or not all of it is there)")
    reader = _Reader(memoryview(data), "<" if mark == b"IM" else ">", HEADER_BYTES)
    variables: dict[str, Any] = {}
    room = MOST_BYTES
    try:
        while reader.place < len(data):
            kind, content = reader.element()
            if kind == COMPRESSED:
                unpacked = _unpack(content, room)
                room -= len(unpacked)
                kind, content = _Reader(memoryview(unpacked), reader.order).element()
            if kind == MATRIX:
                name, value = _matrix(content, reader.order)
                variables[name] = value
    except RecursionError as error:
        raise SmidgenError(f"{path} is nested too deeply") from error
    except (ValueError, IndexError, struct.error, zlib.error) as error:
        raise SmidgenError(f"{path} is damaged or holds what is not read: {error}") from error
    return variables


def _unpack(content: memoryview, most: int) -> bytes:
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(content, most + 1)
    if len(data) > most or not unpacking.eof:
        raise ValueError(f"it is cut off, or unpacks to more than {MOST_BYTES:,} bytes")
    return data


class _Reader:
    """Elements (type, bytes) one after another."""

    def __init__(self, data: memoryview, order: Order, place: int = 0) -> None:
        self.data = data
        self.order: Order = order
        self.place = place

    def element(self) -> tuple[int, memoryview]:
        kind, size = struct.unpack_from(f"{self.order}II", self.data, self.place)
        start = self.place + 8
        if kind >> 16:  # a small element: size, type and up to four bytes in eight
            kind, size, start = kind & 0xFFFF, kind >> 16, self.place + 4
            self.place += 8
        else:
            # all but compressed elements are padded to eight bytes
            self.place = start + size + (0 if kind == COMPRESSED else -size % 8)
        if start + size > len(self.data):
            raise ValueError("it ends too early")
        return kind, self.data[start : start + size]

    def numbers(self) -> np.ndarray:
        kind, content = self.element()
        if kind not in NUMBERS:
            raise ValueError(f"numbers of type {kind}")
        return np.frombuffer(content, np.dtype(NUMBERS[kind]).newbyteorder(self.order))


def _matrix(content: memoryview, order: Order) -> tuple[str, Any]:
    """Name and value of one array."""
    if not len(content):  # how an empty cell or field is stored
        return "", np.zeros((0, 0))
    reader = _Reader(content, order)
    flags = int(reader.numbers()[0])
    shape = tuple(int(size) for size in reader.numbers())
    name = bytes(reader.element()[1]).decode("latin-1")
    kind, count = flags & 0xFF, math.prod(shape)
    if not 0 <= count <= len(content):
        raise ValueError(f"an array of shape {shape} in {len(content):,} bytes")
    if kind == CELL:
        return name, [_value(reader) for _ in range(count)]
    if kind == STRUCT:
        return name, _structs(reader, count)
    if kind == TEXT:
        return name, _text(reader, shape)
    if kind in NUMERIC and not flags & COMPLEX_FLAG:
        return name, reader.numbers().reshape(shape, order="F")
    raise ValueError(f"an array of class {kind}")


def _value(reader: _Reader) -> Any:
    kind, content = reader.element()
    if kind != MATRIX:
        raise ValueError(f"a cell of type {kind}")
    return _matrix(content, reader.order)[1]


def _structs(reader: _Reader, count: int) -> list[dict[str, Any]]:
    width = int(reader.numbers()[0])
    names = bytes(reader.element()[1])
    fields = [
        names[start : start + width].split(b"\0")[0].decode("latin-1")
        for start in range(0, len(names), width)
    ]
    if not fields:
        raise ValueError("structs without fields")
    return [{field: _value(reader) for field in fields} for _ in range(count)]


def _text(reader: _Reader, shape: tuple[int, ...]) -> str:
    kind, stored = reader.element()
    content = bytes(stored)
    if kind == UTF8:
        text = content.decode("utf-8")
    elif kind in (UTF16, 4):
        text = content.decode("utf-16-le" if reader.order == "<" else "utf-16-be")
    else:
        text = content.decode("latin-1")
    num_rows = min(shape[0], len(text)) if shape else 1
    # stored column by column
    return "\n".join(text[row::num_rows] for row in range(num_rows)) if num_rows > 1 else text
