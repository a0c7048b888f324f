"""Small trees of Oxford Flowers-102 and Stanford Cars, their .mat files written by scipy."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError
from tests.tiny.images import write_image


def make_flowers(root: Path) -> np.ndarray:
    """Two images of each class, in a mixed order; the first of each is for training."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1, 103), 2))
    data = write_image(root / "jpg" / "image_00001.jpg").read_bytes()
    for number in range(1, len(labels) + 1):
        (root / "jpg" / f"image_{number:05d}.jpg").write_bytes(data)
    first = np.array([np.flatnonzero(labels == label)[0] for label in range(1, 103)]) + 1
    others = np.setdiff1d(np.arange(1, 205), first)
    ids = {"trnid": first[None], "valid": others[None, :102], "tstid": others[None, ::-1]}
    scipy.io.savemat(root / "imagelabels.mat", {"labels": labels[None].astype(np.uint8)})
    scipy.io.savemat(root / "setid.mat", {k: v.astype(np.uint16) for k, v in ids.items()})
    return labels


def test_flowers_102_takes_classes_and_splits_from_its_files(tmp_path: Path) -> None:
    labels = make_flowers(tmp_path / "flowers-102")
    train = open_images(tmp_path, layout="flowers-102")
    assert len(train.classes) == len(set(train.classes)) == 102
    # as the data set's page has them, from 1: 1 pink primrose, 54 sunflower, 102 blackberry lily
    assert train.classes[0] == "pink primrose"
    assert train.classes[53] == "sunflower"
    assert train.classes[101] == "blackberry lily"
    assert sorted(train.class_numbers) == list(range(102))
    found = {}
    for split in ("train", "val", "test", "all"):
        listed = open_images(tmp_path, layout="flowers-102", split=split, decode=False).files
        found[split] = [int(file.path.stem.removeprefix("image_")) for file in listed]
        for file, number in zip(listed, found[split], strict=True):
            assert file.class_number == labels[number - 1] - 1
    assert found["all"] == [*found["train"], *found["val"], *found["test"]]


def test_flowers_102_with_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make_flowers(tmp_path)
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"labels": np.ones((1, 5))})
    with pytest.raises(SmidgenError, match="names images that"):
        open_images(tmp_path, layout="flowers-102")
    scipy.io.savemat(tmp_path / "imagelabels.mat", {"other": np.ones((1, 5))})
    with pytest.raises(SmidgenError, match='no array "labels"'):
        open_images(tmp_path, layout="flowers-102")


CARS = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo 2012"]


def annotations(rows: list[tuple], *fields: str) -> np.ndarray:
    boxes = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    kinds = [(name, "O") for name in (*boxes, *fields)]
    return np.array([(1, 2, 3, 4, *row) for row in rows], dtype=kinds)[None]


def test_stanford_cars_reads_its_devkit(tmp_path: Path) -> None:
    root = tmp_path / "stanford_cars"
    rows = {"train": [(2, "00001.jpg"), (1, "00002.jpg"), (3, "00003.jpg")]}
    rows["test"] = [(3, "00001.jpg"), (2, "00002.jpg"), (1, "00003.jpg"), (1, "00004.jpg")]
    for split, listed in rows.items():
        for _, name in listed:
            write_image(root / f"cars_{split}" / name)
    (root / "devkit").mkdir()
    scipy.io.savemat(
        root / "devkit" / "cars_meta.mat", {"class_names": np.array(CARS, dtype=object)[None]}
    )
    train = {"annotations": annotations(rows["train"], "class", "fname")}
    scipy.io.savemat(root / "devkit" / "cars_train_annos.mat", train)
    found = open_images(tmp_path, layout="stanford-cars")
    assert found.classes == (CARS[0], "Ram C-V Cargo Van Minivan 2012", CARS[2])
    assert [(file.path.name, file.class_number) for file in found.files] == [
        ("00001.jpg", 1),
        ("00002.jpg", 0),
        ("00003.jpg", 2),
    ]
    with pytest.raises(SmidgenError, match=r"looked for cars_test_annos_withlabels.mat"):
        open_images(tmp_path, layout="stanford-cars", split="test")
    test = {"annotations": annotations(rows["test"], "class", "fname")}
    scipy.io.savemat(root / "cars_test_annos_withlabels.mat", test)
    found = open_images(root, layout="stanford-cars", split="test")
    assert found.class_numbers == (2, 1, 0, 0)
    assert found.files[0].path == root / "cars_test" / "00001.jpg"


@pytest.mark.parametrize("row", [(2.0, 7.0), ("two", "00001.jpg"), ([1, 2], "00001.jpg")])
def test_stanford_cars_with_other_annotations_are_refused(row: tuple, tmp_path: Path) -> None:
    for name in ("cars_train", "devkit"):
        (tmp_path / name).mkdir()
    names = {"class_names": np.array(CARS, dtype=object)[None]}
    scipy.io.savemat(tmp_path / "devkit" / "cars_meta.mat", names)
    rows = {"annotations": annotations([row], "class", "fname")}
    scipy.io.savemat(tmp_path / "devkit" / "cars_train_annos.mat", rows)
    with pytest.raises(SmidgenError, match="no annotations with fname and class"):
        open_images(tmp_path, layout="stanford-cars")


def test_stanford_cars_in_its_older_form(tmp_path: Path) -> None:
    rows = [(f"car_ims/{n:06d}.jpg", 1 + n % 3, n // 3) for n in range(6)]
    for path, _, _ in rows:
        write_image(tmp_path / path)
    variables = {
        "annotations": annotations(rows, "relative_im_path", "class", "test"),
        "class_names": np.array(CARS, dtype=object)[None],
    }
    scipy.io.savemat(tmp_path / "cars_annos.mat", variables)
    train = open_images(tmp_path, layout="stanford-cars")
    assert [train.name(file.path) for file in train.files] == [row[0] for row in rows[:3]]
    assert train.class_numbers == (0, 1, 2)
    assert len(open_images(tmp_path, layout="stanford-cars", split="test").files) == 3
