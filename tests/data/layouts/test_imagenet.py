"""Small ILSVRC trees: with the devkit, with the validation images in folders, and Kaggle's."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from smidgen.data.layouts import open_images
from smidgen.errors import SmidgenError
from tests.tiny.images import write_image

# The devkit numbers its synsets in an order of its own.
SYNSETS = {"n02012849": "crane", "n01440764": "tench, Tinca tinca", "n03126707": "crane"}
IDS = {"n02012849": 1, "n01440764": 2, "n03126707": 3}
ORDER = ("n01440764", "n02012849", "n03126707")
NAMES = ("tench", "crane (1)", "crane (2)")
TRUTH = ("n02012849", "n03126707", "n01440764", "n02012849")


def make_train(root: Path) -> None:
    for synset in SYNSETS:
        for number in (1, 2):
            write_image(root / synset / f"{synset}_{number}.JPEG", seed=number)


def make_devkit(root: Path) -> None:
    """meta.mat as the devkit has it: synsets (N, 1), among them an inner node."""
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    rows = [(IDS[s], s, words, "what it is", 0, []) for s, words in SYNSETS.items()]
    rows.append((4, "n00001740", "entity", "all", 3, [1, 2, 3]))
    table = np.array(rows, dtype=[(name, "O") for name in fields])[:, None]
    (root / "data").mkdir(parents=True)
    scipy.io.savemat(root / "data" / "meta.mat", {"synsets": table}, do_compression=True)
    lines = "".join(f"{IDS[synset]}\n" for synset in TRUTH)
    (root / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def test_the_devkit_names_classes_and_validation_images(tmp_path: Path) -> None:
    make_train(tmp_path / "train")
    make_devkit(tmp_path / "ILSVRC2012_devkit_t12")
    for number in range(1, 5):
        write_image(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", seed=number)
    train = open_images(tmp_path, layout="imagenet")
    assert train.classes == NAMES
    assert train.class_numbers == (0, 0, 1, 1, 2, 2)
    for file in train.files:
        assert file.path.parent.name == ORDER[file.class_number]
    val = open_images(tmp_path, layout="imagenet", split="val")
    assert val.classes == NAMES
    assert [ORDER[label] for label in val.class_numbers] == list(TRUTH)
    # the same images sorted into folders of synsets
    for file in val.files:
        target = tmp_path / "val" / ORDER[file.class_number]
        target.mkdir(exist_ok=True)
        file.path.rename(target / file.path.name)
    again = open_images(tmp_path, layout="imagenet", split="val")
    labels = {file.path.name: file.class_number for file in val.files}
    assert {file.path.name: file.class_number for file in again.files} == labels


def test_kaggles_tree_is_the_same_data(tmp_path: Path) -> None:
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    make_train(images / "train")
    rows = ["ImageId,PredictionString"]
    for number, synset in enumerate(TRUTH, start=1):
        name = f"ILSVRC2012_val_{number:08d}"
        write_image(images / "val" / f"{name}.JPEG", seed=number)
        rows.insert(1, f"{name},{synset} 10 20 30 40 {synset} 1 2 3 4 ")
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(rows))
    lines = "".join(f"{synset} {SYNSETS[synset]}\n" for synset in ORDER)
    (tmp_path / "LOC_synset_mapping.txt").write_text(lines)
    assert open_images(tmp_path, layout="imagenet").classes == NAMES
    val = open_images(tmp_path, layout="imagenet", split="val")
    assert [ORDER[label] for label in val.class_numbers] == list(TRUTH)


def test_a_tree_that_lacks_a_synset_or_the_devkit_is_refused(tmp_path: Path) -> None:
    make_train(tmp_path / "train")
    with pytest.raises(SmidgenError, match=r"; missing: .*meta.mat; found: train/"):
        open_images(tmp_path, layout="imagenet")
    make_devkit(tmp_path / "ILSVRC2012_devkit_t12")
    shutil.rmtree(tmp_path / "train" / "n01440764")
    with pytest.raises(SmidgenError, match=r"1 are missing, such as n01440764"):
        open_images(tmp_path, layout="imagenet")
    with pytest.raises(SmidgenError, match=r"looked for val"):
        open_images(tmp_path, layout="imagenet", split="val")


def test_a_validation_image_of_no_class_is_named(tmp_path: Path) -> None:
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    write_image(images / "val" / "ILSVRC2012_val_00000001.JPEG", seed=1)
    rows = "ImageId,PredictionString\nILSVRC2012_val_00000001,n00000000 1 2 3 4\n"
    (tmp_path / "LOC_val_solution.csv").write_text(rows)
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    with pytest.raises(SmidgenError, match="n00000000, which is no class"):
        open_images(tmp_path, layout="imagenet", split="val")
    for lacking in ("x, ", "x", ",n01440764 1 2 3 4"):
        (tmp_path / "LOC_val_solution.csv").write_text(f"{rows}{lacking}\n")
        with pytest.raises(SmidgenError, match=r"line 3 of .* lacks the image or its synset"):
            open_images(tmp_path, layout="imagenet", split="val")
