"""What the first bytes and the suffix of a file say about it."""

import io

import pytest
from PIL import Image

from smidgen.data.formats import FORMATS, SNIFFED_BYTES, UNSUPPORTED, has_image_suffix, sniff


@pytest.mark.parametrize("form", sorted(set(FORMATS.values())))
def test_every_format_that_is_read_is_known_by_its_first_bytes(form: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, form)
    assert sniff(buffer.getvalue()[:SNIFFED_BYTES]) == form


def test_portable_maps_and_streams_as_other_programs_write_them_are_known() -> None:
    for head in (b"P6\n# made by\n", b"P1 3 4 0 1", b"P5\t16\n16\n255\n"):
        assert sniff(head) == "PPM"
    assert sniff(b"\xff\x4f\xff\x51\0\x2f") == "JPEG2000"
    assert sniff(b"MM\0+\0\x08") == "TIFF"


def test_texts_and_other_files_are_no_images() -> None:
    for head in (
        b"",
        b"BMW builds cars and motorcycles.",
        b"P1 is the first of two",
        b"P6",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"\0\0\0\x18ftypmp42",
        b"PK\3\4",
        b"%PDF-1.4",
        b"\xff\xd8",
        b"Photo of a cat",
    ):
        assert sniff(head) is None


def test_a_suffix_counts_in_any_case_and_a_hidden_name_is_no_suffix() -> None:
    assert all(has_image_suffix(f"a.b{suffix.upper()}") for suffix in (*FORMATS, *UNSUPPORTED))
    assert not any(map(has_image_suffix, ("a", "a.txt", ".png", "a.png.part", "png")))
