"""Our reader against files that scipy writes, and against its reader."""

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from smidgen.data.layouts.matlab import read_matlab
from smidgen.errors import SmidgenError


@pytest.mark.parametrize("compressed", [False, True])
def test_numbers_text_cells_and_structs_are_read_as_scipy_wrote_them(
    tmp_path: Path, compressed: bool
) -> None:
    grid = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    rows = np.array(
        [(f"{i:05d}.jpg", np.uint8(i), [i, i + 0.5]) for i in range(7)],
        dtype=[("fname", "O"), ("class", "O"), ("box", "O")],
    )
    cells = np.array(["AM General Hummer", "Ünïcode", "x", ""], dtype=object)
    variables = {"grid": grid, "rows": rows, "cells": cells, "word": "a longer word", "n": 1.5}
    path = tmp_path / "all.mat"
    scipy.io.savemat(path, variables, do_compression=compressed)
    found = read_matlab(path)

    assert set(found) == set(variables)
    np.testing.assert_array_equal(found["grid"], scipy.io.loadmat(path)["grid"])
    np.testing.assert_array_equal(found["grid"], grid)
    assert found["word"] == "a longer word"
    assert found["n"].item() == 1.5
    assert found["cells"][:3] == ["AM General Hummer", "Ünïcode", "x"]
    assert len(found["cells"][3]) == 0
    assert [row["fname"] for row in found["rows"]] == [f"{i:05d}.jpg" for i in range(7)]
    assert [row["class"].item() for row in found["rows"]] == list(range(7))
    np.testing.assert_array_equal(found["rows"][3]["box"].ravel(), [3, 3.5])


@pytest.mark.parametrize(
    "kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", "bool"]
)
def test_every_kind_of_number_is_read(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).integers(0, 100, (3, 5)).astype(kind)
    scipy.io.savemat(tmp_path / "n.mat", {"n": values})
    np.testing.assert_array_equal(read_matlab(tmp_path / "n.mat")["n"], values)


def test_rows_of_text_are_lines(tmp_path: Path) -> None:
    scipy.io.savemat(tmp_path / "t.mat", {"t": np.array(["one", "two"])})
    assert read_matlab(tmp_path / "t.mat")["t"] == "one\ntwo"


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_cut_anywhere_is_an_error_or_a_shorter_list(
    tmp_path: Path, compressed: bool
) -> None:
    """Between two variables a cut cannot be seen; elsewhere it must be."""
    path = tmp_path / "whole.mat"
    scipy.io.savemat(path, {"a": np.arange(50.0), "b": "text"}, do_compression=compressed)
    data, whole = path.read_bytes(), read_matlab(path)
    num_refused = 0
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        try:
            found = read_matlab(path)
        except SmidgenError:
            num_refused += 1
        else:
            assert len(found) < len(whole)
            for name, value in found.items():
                np.testing.assert_array_equal(value, whole[name])
    assert num_refused > len(data) / 7 * 0.8


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "hdf.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    with pytest.raises(SmidgenError, match="no MATLAB 5 file"):
        read_matlab(tmp_path / "hdf.mat")
    scipy.io.savemat(tmp_path / "complex.mat", {"z": np.array([1 + 2j])})
    with pytest.raises(SmidgenError, match="what is not read"):
        read_matlab(tmp_path / "complex.mat")
    with pytest.raises(SmidgenError, match="cannot read"):
        read_matlab(tmp_path / "nothing.mat")


def element(kind: int, content: bytes) -> bytes:
    """A stored element, padded."""
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def matrix(kind: int, shape: tuple[int, ...], *parts: bytes) -> bytes:
    """An array of a class (table 1-3) called x."""
    flags = element(6, struct.pack("<II", kind, 0))
    sizes = element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, flags + sizes + element(1, b"x") + b"".join(parts))


def write_matlab(path: Path, *elements: bytes) -> Path:
    path.write_bytes(bytes(124) + b"\0\1IM" + b"".join(elements))
    return path


def nested(depth: int) -> bytes:
    inner = matrix(6, (1, 1), element(9, bytes(8)))
    for _ in range(depth):
        inner = matrix(1, (1, 1), inner)
    return inner


FIELDS = element(5, struct.pack("<i", 4))
DAMAGED = {
    "cells without end": matrix(1, (2**31 - 1, 2**31 - 1)),
    "fewer cells than none": matrix(1, (-1, 5)),
    "structs without end": matrix(2, (2**31 - 1, 1), FIELDS, element(1, b"a\0\0\0")),
    "structs without fields": matrix(2, (9, 1), FIELDS, element(1, b"")),
    "fields of no width": matrix(2, (1, 1), element(5, bytes(4)), element(1, b"abcd")),
    "rows of text without end": matrix(4, (2**31 - 1, 1), element(1, b"abc")),
    "numbers of another shape": matrix(6, (3, 3), element(9, bytes(8))),
    "a class of its own": matrix(17, (1, 1), element(9, bytes(8))),
    "numbers of no type": matrix(6, (1, 1), element(99, bytes(8))),
    "no flags": element(14, element(6, b"")),
    "nested": nested(3000),
    "a bomb": element(15, zlib.compress(bytes(2**27 + 1), 9)),
    "cut off inside": element(15, zlib.compress(bytes(range(256)) * 99)[:-40]),
    "no deflated data": element(15, b"no deflated data"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_one_line_and_takes_no_more_memory_than_it_may(
    tmp_path: Path, damage: str
) -> None:
    path = write_matlab(tmp_path / "x.mat", DAMAGED[damage])
    tracemalloc.start()
    try:
        with pytest.raises(
            SmidgenError, match=r"x\.mat (is damaged|is nested too deeply)"
        ) as caught:
            read_matlab(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1
    assert peak < 2**28 + 2**26
