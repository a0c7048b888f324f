"""Small trees of Caltech-101 and ArtBench-10."""

import shutil
from pathlib import Path

import pytest

from smidgen.data.layouts import open_images
from smidgen.data.layouts.folder_sets import STYLES
from smidgen.errors import SmidgenError
from tests.tiny.images import write_image


def test_caltech_101_leaves_the_background_out_unless_asked(tmp_path: Path) -> None:
    root = tmp_path / "caltech-101" / "101_ObjectCategories"
    for name in ("BACKGROUND_Google", "Faces_easy", "accordion", "yin_yang"):
        for number in (1, 2):
            write_image(root / name / f"image_{number:04d}.jpg", seed=number)
    (root / "BACKGROUND_Google" / "tmp").write_bytes(b"what the archive has there")
    objects = open_images(tmp_path, layout="caltech-101")
    assert objects.classes == ("accordion", "Faces easy", "yin yang")
    assert objects.class_numbers == (0, 0, 1, 1, 2, 2)
    assert objects.bad == ()
    everything = open_images(tmp_path / "caltech-101", layout="caltech-101", split="all")
    assert everything.classes == ("accordion", "BACKGROUND Google", "Faces easy", "yin yang")
    assert [bad.path.name for bad in everything.bad] == ["tmp"]
    shutil.rmtree(root / "BACKGROUND_Google")
    with pytest.raises(SmidgenError, match="looked for BACKGROUND_Google"):
        open_images(tmp_path, layout="caltech-101", split="all")


def test_artbench_10_in_folders_of_its_splits(tmp_path: Path) -> None:
    root = tmp_path / "artbench-10-imagefolder-split"
    for style in STYLES:
        write_image(root / "train" / style / "a.jpg", seed=1)
        write_image(root / "train" / style / "b.jpg", seed=2)
        write_image(root / "test" / style / "c.jpg", seed=3)
    train = open_images(tmp_path, layout="artbench-10")
    assert train.classes[0] == "Art Nouveau"
    assert train.classes[-1] == "Ukiyo-e"
    assert len(train.classes) == 10
    assert [len(train.files), train.class_numbers.count(4)] == [20, 2]
    for file in train.files:
        assert file.path.parent.name == list(STYLES)[file.class_number]
    assert len(open_images(root, layout="artbench-10", split="test").files) == 10
    shutil.rmtree(root / "train" / "realism")
    with pytest.raises(SmidgenError, match=r"looked for the style realism .*found: art_nouveau/"):
        open_images(root, layout="artbench-10")


def test_artbench_10_without_splits_needs_its_table(tmp_path: Path) -> None:
    root = tmp_path / "artbench-10-imagefolder"
    rows = ["name,artist,label,split"]
    for style in STYLES:
        for name, split in (("one, two.jpg", "train"), ("c.jpg", "test")):
            write_image(root / style / name)
            rows.append(f'"{name}",somebody,{style},{split}')
    with pytest.raises(SmidgenError, match=r"looked for ArtBench-10.csv"):
        open_images(tmp_path, layout="artbench-10")
    (tmp_path / "ArtBench-10.csv").write_text("\n".join(rows), encoding="utf-8")
    train = open_images(tmp_path, layout="artbench-10")
    assert {file.path.name for file in train.files} == {"one, two.jpg"}
    assert sorted(train.class_numbers) == list(range(10))
    for wrong in ("c.jpg,somebody,cubism,train", ",somebody,baroque,train"):
        (tmp_path / "ArtBench-10.csv").write_text("\n".join([*rows, wrong]), encoding="utf-8")
        with pytest.raises(SmidgenError, match=r"line 22 of .*ArtBench-10.csv names no image"):
            open_images(tmp_path, layout="artbench-10")
