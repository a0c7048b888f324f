"""A text comes back from a PNG as it went in; one that anybody may have damaged is refused."""

import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from smidgen.files.png_text import MOST_TEXT, read_png_text
from smidgen.files.reading import Unreadable
from smidgen.files.writing import write_png

PICTURE = Image.new("RGB", (4, 4), "navy")
TEXT = '{"shows": "größer, 水 and \\n lines"}'


def test_a_text_comes_back_and_the_picture_is_as_it_was(tmp_path):
    path = tmp_path / "a.png"
    write_png(PICTURE, path, text=("own", TEXT))
    assert read_png_text(path, "own") == TEXT
    assert read_png_text(path, "other") is None
    with Image.open(path) as image:
        assert image.tobytes() == PICTURE.tobytes()
        assert image.info["own"] == TEXT  # as Pillow, too, reads it
    write_png(PICTURE, tmp_path / "b.png", text=("own", TEXT))
    assert path.read_bytes() == (tmp_path / "b.png").read_bytes()


def test_texts_of_other_forms_are_none(tmp_path):
    for name, written in {
        "plain": {"chunk": "add_text", "zip": False},
        "packed": {"chunk": "add_itxt", "zip": True},
    }.items():
        chunks = PngInfo()
        getattr(chunks, written["chunk"])("own", "x" * 100, zip=written["zip"])
        PICTURE.save(tmp_path / f"{name}.png", pnginfo=chunks)
        assert read_png_text(tmp_path / f"{name}.png", "own") is None


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GIF89a", "it is no PNG"),
        (b"\x89PNG\r\n\x1a\n\x00", "cut off or damaged"),
        (b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**32 - 1) + b"iTXtown", "cut off or damaged"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"own\0\0\0\0\0x")[:-1] + b"?", "damaged"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"own\0\0\0\0\0\xff"), "not UTF-8"),
        (
            b"\x89PNG\r\n\x1a\n" + chunk(b"iTXt", b"own\0\0\0\0\0" + b"x" * MOST_TEXT),
            "its text has",
        ),
    ],
)
def test_what_is_damaged_or_too_long_is_refused_in_a_line(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match=reason) as caught:
        read_png_text(path, "own")
    assert "\n" not in str(caught.value)
