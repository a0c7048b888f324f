"""The report about a data set: the same from a dry run as from a training."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from smidgen.data.encoded_folder import encode_folder
from smidgen.data.findings import Findings, findings_of, num_copies
from smidgen.data.folder import ImageFolder, look_at_all, scan
from smidgen.errors import SmidgenError
from smidgen.sizes import ImageSize
from tests.tiny.codecs import BoxCodec
from tests.tiny.images import noise, write_folder, write_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six pictures and three copies in two classes, two side files and two bad ones."""
    root = write_folder(tmp_path / "images")
    for name in ("a/copy.png", "b/copy.png", "b/copy.jpg"):
        shutil.copy(root / "a" / "0.png", root / name)
    Image.fromarray(noise(50)).save(root / "a" / "webp.jpg", "WEBP")
    Image.fromarray(noise(51)).save(root / "a" / "nameless", "WEBP")
    write_image(root / "b" / "wide.png", seed=9, width=64, height=64)
    (root / "a" / "0.xmp").write_text("x")
    (root / "a" / "0.pt").write_text("x")
    (root / "a" / "cut.png").write_bytes(b"\x89PNG")
    (root / "b" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    return root


def survey(listed: ImageFolder, sizes: Sequence[ImageSize] = ()) -> tuple[ImageFolder, Findings]:
    """As a dry run looks at a listed folder."""
    folder, looks = look_at_all(listed)
    return folder, findings_of(folder, looks, sizes)


EXPECTED = {
    "images": 12,
    "classes": {"a": 6, "b": 6},
    "bad": 2,
    "bad_share": 2 / 14,
    "side_files": 2,
    "skipped": {"side file": 2, "unreadable": 1, "unsupported": 1},
    "other_suffix": 2,
    "copies": 3,
    "enlarged": 11,
}


def test_a_dry_run_and_a_training_say_the_same(images: Path) -> None:
    listed = scan(images, decode=False)
    folder, found = survey(listed, sizes=[ImageSize.of(32)])
    document = json.loads(json.dumps(found.as_json()))
    assert {name: document[name] for name in EXPECTED} == EXPECTED
    latents = encode_folder(
        listed,
        BoxCodec(),
        sizes=[ImageSize.of(32)],
        cache_dir=images.parent / "cache",
        bad_limit=0.5,
    )
    assert latents.findings == found
    assert latents.folder == folder
    again = encode_folder(
        listed,
        BoxCodec(),
        sizes=[ImageSize.of(32)],
        cache_dir=images.parent / "cache",
        bad_limit=0.5,
    )
    assert again.findings == found


def test_names_alone_say_what_they_can_and_that_it_is_not_all(images: Path) -> None:
    found = findings_of(scan(images, decode=False))
    assert (found.images, found.bad, found.side_files, found.read) == (14, 0, 2, False)
    assert (found.other_suffix, found.copies, found.enlarged) == (None, None, None)
    assert "what is inside the files was not looked at" in "\n".join(found.lines())


def test_the_report_counts_all_and_lists_the_bad_ones(images: Path) -> None:
    for number in range(11):
        (images / "a" / f"bad {number:02}.png").write_bytes(b"x")
    lines = survey(scan(images, decode=False), sizes=[ImageSize.of(32)])[1].lines()
    assert lines[0] == f"12 image(s) in 2 class(es) from {images}"
    assert lines[1].startswith("2 with the suffix of another format")
    assert lines[2].startswith("3 are duplicates of others")
    assert lines[3] == "11 smaller than the training size, enlarged"
    assert lines[4] == "2 side file(s) beside them, left alone"
    assert lines[5] == "13 file(s) skipped: 12 unreadable, 1 unsupported"
    assert lines[6].startswith("  a/bad 00.png: unreadable")
    assert lines[-1] == "  … and 3 more"
    assert len(lines) == 6 + 10 + 1


def test_a_report_about_nothing_odd_is_one_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "images", ("a",))
    found = survey(scan(tmp_path / "images", decode=False), sizes=[ImageSize.of(16)])[1]
    assert found.lines() == [f"3 image(s) in 1 class(es) from {tmp_path / 'images'}"]
    assert isinstance(found, Findings)


def test_a_survey_refuses_what_a_training_would(images: Path) -> None:
    for path in (images / "b").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(SmidgenError, match='class folder "b"'):
        survey(scan(images, decode=False))


def test_copies_are_all_but_the_first_of_each_content() -> None:
    assert num_copies([]) == 0
    assert num_copies("abc") == 0
    assert num_copies("abacaa") == 3
