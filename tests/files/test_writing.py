"""A file is whole or as it was before, and what the disk refuses is one line."""

import os
from pathlib import Path

import pytest
from PIL import Image

from smidgen.errors import SmidgenError
from smidgen.files.writing import (
    MOST_NAME_BYTES,
    partial_of,
    whole_file,
    write_json,
    write_png,
    write_text,
)


def test_a_file_appears_whole_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    write_text("new", tmp_path / "deep" / "name.txt")
    assert (tmp_path / "deep" / "name.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["name.txt"]


def test_what_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "name.txt"
    write_text("old", path)

    def write_a_part() -> None:
        with whole_file(path) as partial:
            partial.write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_a_part()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_disk_refuses_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SmidgenError) as caught:
        write_json({}, tmp_path / "file" / "below.json", "give another place")
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'file' / 'below.json'}: ")
    assert str(caught.value).endswith("; give another place")
    assert "\n" not in str(caught.value)


def test_json_keeps_every_letter_readable(tmp_path: Path) -> None:
    write_json({"class": "東京"}, tmp_path / "a.json")
    assert "東京" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["short", "n" * 255, "塔" * 85])
def test_the_name_beside_a_file_is_never_too_long_and_never_the_same(name: str) -> None:
    path = Path("folder") / name
    first, second = partial_of(path), partial_of(path)
    assert first != second
    assert first.parent == path.parent
    assert all(len(os.fsencode(one.name)) <= MOST_NAME_BYTES for one in (first, second))


def test_a_picture_is_written_whole_under_any_name(tmp_path: Path) -> None:
    write_png(Image.new("RGB", (4, 3)), tmp_path / "deep" / "name.png")
    assert Image.open(tmp_path / "deep" / "name.png").size == (4, 3)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["name.png"]
