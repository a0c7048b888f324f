"""No array is unpacked before its size is known and plausible; a bomb is refused in one line."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from smidgen.errors import SmidgenError
from smidgen.evaluation import sample_batches
from smidgen.evaluation.arrays import MOST_BYTES, read_array, read_headers
from smidgen.evaluation.sample_batches import open_sample_batch
from smidgen.evaluation.statistics import read_statistics

from .conftest import colour_extractor

GIVEN = {"mu": np.zeros(6), "sigma": np.eye(6)}


def array(header: str, content: bytes = b"", version: int = 1) -> bytes:
    """A .npy whose header says this."""
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + content


def archive(path, members: dict[str, bytes], packing=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def header(shape: str, dtype: str = "<f8") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def test_headers_and_arrays_are_what_was_saved(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array("text"), "c": np.zeros((0, 4), "i2")}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        found = read_headers(tmp_path / "x.npz")
        assert {name: (one.shape, one.dtype) for name, one in found.items()} == {
            name: (one.shape, one.dtype) for name, one in arrays.items()
        }
        assert found["a"].num_bytes == 48
        for name, expected in arrays.items():
            np.testing.assert_array_equal(read_array(tmp_path / "x.npz", name), expected)


@pytest.mark.parametrize("name", ["labels", "mask", "features"])
def test_a_bomb_is_refused_before_memory_grows(name, tmp_path):
    """As case A9: hundreds of megabytes in less than one, whoever would read them."""
    path = tmp_path / "bomb.npz"
    shape = (MOST_BYTES // 48 + 1, 6)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for other, value in GIVEN.items():
            with file.open(f"{other}.npy", "w") as member:
                np.lib.format.write_array(member, value)
        with file.open(f"{name}.npy", "w") as member:
            member.write(array(header(str(shape))))
            for _ in range(shape[0] * 48 // 2**20 + 1):
                member.write(bytes(2**20))
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(SmidgenError, match="would unpack to"):
            read_statistics(path, colour_extractor())
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()


def test_arrays_as_large_as_their_file_are_read_whatever_their_size(tmp_path):
    features = np.random.default_rng(0).normal(size=(MOST_BYTES // 48 + 1, 6))
    np.savez(tmp_path / "large.npz", **GIVEN, features=features)
    assert read_headers(tmp_path / "large.npz")["features"].num_bytes > MOST_BYTES


@pytest.mark.parametrize(
    "content",
    [
        array(header("(1099511627776,)")),  # says terabytes, has nothing
        array(header("(6,)"), bytes(47)),
        array(header("(-6,)"), bytes(48)),
        array(header("(2, 'a')"), bytes(48)),
        array("{'descr': '<f8', 'fortran_order': False}", bytes(48)),
        array("{'descr': [('a', '<f8', (99999999999,))], 'fortran_order': 0, 'shape': ()}"),
        array("(" * 9000),
        array("[" + "-" * 9000),
        array(header("(6,)") + " " * 2**24, bytes(48), version=2),  # a header of megabytes
        array(header("(6,)"), bytes(48), version=9),
        b"\x93NUMPY",
        b"",
    ],
)
def test_a_header_that_says_nonsense_is_refused(content, tmp_path):
    path = archive(tmp_path / "odd.npz", {"mu.npy": content, "sigma.npy": content})
    with pytest.raises(SmidgenError, match=r"odd\.npz is not a readable \.npz") as caught:
        read_statistics(path, colour_extractor())
    assert "\n" not in str(caught.value)


def test_what_numpy_never_writes_is_not_unpacked(tmp_path):
    good = io.BytesIO()
    np.save(good, np.zeros(6))
    packed = archive(tmp_path / "packed.npz", {"mu.npy": good.getvalue()}, zipfile.ZIP_LZMA)
    with pytest.raises(SmidgenError, match="packed otherwise"):
        read_headers(packed)
    many = archive(tmp_path / "many.npz", {f"{n}.npy": b"" for n in range(1001)})
    with pytest.raises(SmidgenError, match="1,001 arrays; at most 1,000"):
        read_headers(many)


def test_images_come_few_at_a_time_where_they_are_large_and_impossible_ones_not_at_all(
    tmp_path, monkeypatch
):
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), np.uint8)
    path = tmp_path / "images.npz"
    np.savez(path, arr_0=images)
    batch = open_sample_batch(path)
    monkeypatch.setattr(sample_batches, "MOST_BATCH_BYTES", 3 * 8 * 8 * 3 + 1)
    parts = list(batch.batches(64))
    assert [first for first, _, _ in parts] == [0, 3, 6]
    np.testing.assert_array_equal(np.concatenate([part for _, part, _ in parts]), images)
    assert [len(part) for _, part, _ in batch.batches(2)] == [2, 2, 2, 1]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    with pytest.raises(SmidgenError, match="8 x 8 pixels, over 63"):
        open_sample_batch(path)
