"""Names that are safe, roots that are found, and what is said of a tree that is something else."""

import os
from pathlib import Path
from typing import get_args

import pytest

from smidgen.data.folder import scan
from smidgen.data.layout import safe_names
from smidgen.data.layouts import LAYOUTS, open_images, resolve_split
from smidgen.data.names import LayoutName
from smidgen.errors import SmidgenError, UsageError
from tests.tiny.images import write_folder

WITH_TREES = sorted(set(LAYOUTS) - {"folder"})


def test_the_command_line_offers_every_layout() -> None:
    assert get_args(LayoutName) == tuple(LAYOUTS)


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
        write_folder(root, ("cats", "dogs"), per_class=1)
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
    write_folder(tmp_path / "train", ("a", "b"), per_class=2)
    write_folder(tmp_path / "test", ("a", "b"), per_class=1)
    assert len(open_images(tmp_path, split="test").files) == 2
    with pytest.raises(SmidgenError, match="no such folder"):
        open_images(tmp_path, split="val")


def test_a_name_keeps_its_wide_and_unbreakable_spaces(tmp_path: Path) -> None:
    assert safe_names(["東京\u3000タワー", "a\u00a0b"]) == ("東京\u3000タワー", "a\u00a0b")
    with pytest.raises(SmidgenError, match="not UTF-8"):
        safe_names(["caf\udce9"])


@pytest.mark.parametrize("layout", WITH_TREES)
def test_a_root_that_is_not_utf8_is_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(SmidgenError, match="not UTF-8"):
        open_images(tmp_path / "caf\udce9", layout=layout)


# What a list of a data set may turn out to be; each is one line, and none a hang.
LISTS = {
    "meta/classes.txt": "food-101",
    "meta/train.txt": "food-101",
    "ClassName.txt": "sun397",
    "images.txt": "cub-200-2011",
    "train_test_split.txt": "cub-200-2011",
    "DF20M-train_metadata_PROD.csv": "df20m",
    "ArtBench-10.csv": "artbench-10",
    "LOC_synset_mapping.txt": "imagenet",
    "LOC_val_solution.csv": "imagenet",
    "devkit/data/meta.mat": "imagenet",
    "imagelabels.mat": "flowers-102",
    "setid.mat": "flowers-102",
    "cars_annos.mat": "stanford-cars",
}
FOLDERS = ("images", "a", "DF20M", "art_nouveau", "ukiyo_e", "val", "jpg", "car_ims")
CONTENTS = {
    "empty": b"",
    "zeros": bytes(4096),
    "a null in a line": b"/a/b\0c\0 d\0e\n",
    "numbers": b"1 2\n2 3\n",
    "ways out": b"/../../x ../../x\n/../y /etc/passwd\n",
    "no text": bytes(range(256)) * 20,
    "a long word": b"9" * 200_000,
    "a table of other columns": b"x,y\n1,2\n",
    "short rows": b"image_path,scientificName,name,label,split,ImageId,PredictionString\n1\n,\n",
    "superscripts": "²,²\n² ²\n".encode(),
}


@pytest.mark.parametrize("list_name", LISTS)
def test_whatever_a_list_holds_the_answer_is_one_line(tmp_path: Path, list_name: str) -> None:
    layout = LISTS[list_name]
    kinds = ("pipe", "folder", "/dev/zero") if hasattr(os, "mkfifo") else ()
    for number, kind in enumerate((*CONTENTS, *kinds)):
        root = tmp_path / str(number)
        for name in FOLDERS:
            (root / name).mkdir(parents=True)
        for name in [name for name, of in LISTS.items() if of == layout and name != list_name]:
            if name != "devkit/data/meta.mat":
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_bytes(b"a b\n")
        (root / "meta").mkdir(exist_ok=True)
        for name in ("meta/labels.txt", "meta/test.txt", "classes.txt", "image_class_labels.txt"):
            (root / name).write_bytes(b"1 a\n")
        (root / "DF20M-public_test_metadata_PROD.csv").write_text("image_path,scientificName\n")
        path = root / list_name
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "/dev/zero":
            path.symlink_to(kind)
        else:
            path.write_bytes(CONTENTS[kind])
        split = "val" if layout == "imagenet" else None
        with pytest.raises(SmidgenError) as caught:
            open_images(root, layout=layout, split=split)
        assert len(str(caught.value).splitlines()) <= 2, kind
        assert len(str(caught.value)) < 1000 + 5 * len(str(root)), kind
        str(caught.value).encode("utf-8")
