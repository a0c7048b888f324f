"""Names that are safe, roots that are found, and what is said of a tree that is something else."""

from pathlib import Path
from typing import get_args

import pytest

from smidgen.cli.options import LAYOUT_NAMES
from smidgen.data.folder import scan
from smidgen.data.layout import safe_names
from smidgen.data.layouts import LAYOUTS, open_images, resolve_split
from smidgen.errors import SmidgenError, UsageError
from tests.data.making import write_folder

WITH_TREES = sorted(set(LAYOUTS) - {"folder"})


def test_the_command_line_offers_every_layout() -> None:
    assert get_args(LAYOUT_NAMES) == tuple(LAYOUTS)


def test_names_are_safe_as_folders_and_unique() -> None:
    official = ["Ram C/V Cargo Van", "crane", " two\twords ", "crane", "..", "a\\b", "cafe\u0301"]
    names = safe_names(official)
    assert names[0] == "Ram C-V Cargo Van"
    assert names[1] == "crane (1)"
    assert names[3] == "crane (3)"
    assert names[2] == "two words"
    assert names[5:] == ("a-b", "caf\u00e9")
    assert len(set(names)) == len(names)
    assert all(name and not name.startswith(".") and "/" not in name for name in names)


@pytest.mark.parametrize("layout", WITH_TREES)
@pytest.mark.parametrize("tree", ["another", "empty", "absent"])
def test_another_tree_is_refused_with_what_was_looked_for(
    tmp_path: Path, layout: str, tree: str
) -> None:
    root = tmp_path / "tree here"
    if tree == "another":
        write_folder(root, ("cats", "dogs"), num_images=1)
    elif tree == "empty":
        root.mkdir()
    with pytest.raises(SmidgenError) as raised:
        open_images(root, layout=layout)
    message = str(raised.value)
    assert "looked for" in message
    assert "tree here" in message
    assert {"another": "cats/, dogs/", "empty": "an empty folder", "absent": "no such folder"}[
        tree
    ] in message
    assert message.count("\n") <= 1


def test_every_layout_has_its_default_among_its_splits() -> None:
    for name, layout in LAYOUTS.items():
        assert layout.default_split is None or layout.default_split in layout.splits, name
        assert resolve_split(name, None) == layout.default_split


def test_unknown_layouts_and_splits_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='did you mean "food-101"'):
        open_images(tmp_path, layout="food101")
    with pytest.raises(UsageError, match='has no split "tests"; did you mean'):
        open_images(tmp_path, layout="cub-200-2011", split="tests")


def test_the_layout_folder_is_a_scan(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "a" / "cut.png").write_bytes((tmp_path / "a" / "0.png").read_bytes()[:60])
    found = open_images(tmp_path)
    assert found == scan(tmp_path)
    assert [bad.path.name for bad in found.bad] == ["cut.png"]
    assert open_images(tmp_path, decode=False) == scan(tmp_path, decode=False)


def test_a_split_of_the_layout_folder_is_a_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", ("a", "b"), num_images=2)
    write_folder(tmp_path / "test", ("a", "b"), num_images=1)
    assert len(open_images(tmp_path, split="test").files) == 2
    with pytest.raises(SmidgenError, match="no such folder"):
        open_images(tmp_path, split="val")
