"""A run on a data set in one of its published layouts: what is trained on and what is recorded."""

from pathlib import Path

import pytest

from smidgen import api
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.training.recipe import read_recipe
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos

SHORT = {"steps": 2, "batch_size": 4, "trackers": (), "progress": False}


def make_food(root: Path) -> Path:
    """Food-101 with two classes of ten images, the last two of each for the test."""
    write_photos(root / "images", ("bee", "dog"))
    (root / "meta").mkdir()
    (root / "meta" / "classes.txt").write_text("bee\ndog\n")
    (root / "meta" / "labels.txt").write_text("Bee\nDog\n")
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for path in sorted((root / "images").rglob("*.png")):
        split = "test" if int(path.stem) > 7 else "train"
        lists[split].append(f"{path.parent.name}/{path.stem}")
        path.rename(path.with_suffix(".jpg"))
        _as_jpeg(path.with_suffix(".jpg"))
    for split, names in lists.items():
        (root / "meta" / f"{split}.txt").write_text("\n".join(names))
    return root


def _as_jpeg(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as image:
        image.copy().save(path, "JPEG")


def test_layout_and_split_are_read_recorded_and_compared_on_resuming(tmp_path: Path) -> None:
    base, data = tiny_base(), make_food(tmp_path / "food-101")
    settings = {"output": tmp_path / "run", "cache_dir": tmp_path / "cache", **SHORT}
    delta = api.train(base, data, layout="food-101", **settings)
    assert delta.provenance.classes == ("Bee", "Dog")
    recorded = delta.provenance.training["data"]
    assert recorded["images"] == 16
    assert (recorded["layout"], recorded["split"]) == ("food-101", "train")
    recipe = read_recipe(tmp_path / "run")
    assert recipe is not None
    assert (recipe["layout"], recipe["split"]) == ("food-101", "train")

    # naming the default is the same run, which is finished
    written = (tmp_path / "run" / "delta.safetensors").stat().st_mtime_ns
    api.train(base, data, layout="food-101", split="train", **settings)
    assert (tmp_path / "run" / "delta.safetensors").stat().st_mtime_ns == written

    with pytest.raises(UsageError, match='split "train" -> "test"'):
        api.train(base, data, layout="food-101", split="test", **settings)
    with pytest.raises(UsageError, match='layout "food-101" -> "folder"'):
        api.train(base, data / "images", **settings)
    test = api.train(base, data, layout="food-101", split="test", force=True, **settings)
    assert test.provenance.training["data"]["images"] == 4
    assert Delta.load(tmp_path / "run" / "delta.safetensors").provenance == test.provenance


def test_a_layout_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    base = tiny_base()
    write_photos(tmp_path / "photos")
    with pytest.raises(SmidgenError, match="is not CUB-200-2011"):
        api.train(
            base, tmp_path / "photos", layout="cub-200-2011", output=tmp_path / "run", **SHORT
        )
    with pytest.raises(UsageError, match='no split "tset"'):
        api.train(
            base, tmp_path / "photos", layout="food-101", split="tset", output=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()
