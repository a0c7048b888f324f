"""--layout and --split of `smidgen train`."""

import pytest

from smidgen.cli.options import check_images
from smidgen.errors import UsageError

from .conftest import train_arguments
from .test_misuse import assert_refused


def test_the_plan_counts_the_classes_of_the_split(smidgen, base, photos, tmp_path):
    (tmp_path / "parted").mkdir()
    (tmp_path / "parted" / "train").symlink_to(photos, target_is_directory=True)
    plain = smidgen(*train_arguments(base, photos, tmp_path / "run"), "--dry-run", "--json")
    parted = smidgen(
        *train_arguments(base, tmp_path / "parted", tmp_path / "run"),
        *("--split", "train", "--dry-run", "--json"),
    )
    assert plain.code == parted.code == 0, parted.err
    recipe = parted.document["recipe"]
    assert (recipe["layout"], recipe["split"]) == ("folder", "train")
    assert parted.document["trainable"] == plain.document["trainable"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--layout", "food101"), ("--layout", "food-101")),
        (("--layout", "food-101", "--split", "tran"), ("has no split", "train")),
        (("--layout", "food-101"), ("is not Food-101", "looked for", "meta/classes.txt")),
    ],
)
def test_wrong_layouts_are_refused(smidgen, base, photos, tmp_path, flags, words):
    outcome = smidgen(*train_arguments(base, photos, tmp_path / "run"), *flags, "--dry-run")
    assert_refused(outcome, *words)


def test_only_the_hub_layout_takes_what_is_no_folder(tmp_path):
    check_images(type(tmp_path)("owner/name"), "hf", None)
    with pytest.raises(UsageError, match="no such folder of images: owner/name"):
        check_images(type(tmp_path)("owner/name"), "folder", None)
    with pytest.raises(UsageError, match="no such folder"):
        check_images(tmp_path / "absent", "hf", None)
