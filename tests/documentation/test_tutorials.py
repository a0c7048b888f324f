"""The tutorials and docs/serving.md are followed as they stand, but for few steps."""

import json
import re
from dataclasses import replace

import pytest
from PIL import Image

import smidgen
from tests.documentation.following import follow
from tests.documentation.pages import PAGES, blocks_of

FEW_IMAGES = ["--num-images", "2", "--steps", "2"]
SHORT = ["--steps", "2", "--batch-size", "4"]


def tutorial(name):
    return blocks_of(f"docs/tutorials/{name}.md")


def test_each_tutorial_is_followed_here():
    names = {page.removeprefix("docs/tutorials/") for page in PAGES if "tutorials/" in page}
    assert names == {
        f"{name}.md" for name in ("fine-tune", "personalise", "compare", "serve", "change-pictures")
    }


@pytest.fixture
def few_in_python(monkeypatch):
    """`smidgen.sample` with two steps."""
    sample = smidgen.sample
    monkeypatch.setattr(
        smidgen, "sample", lambda *given, **more: sample(*given, **more | {"steps": 2})
    )


@pytest.mark.slow
@pytest.mark.usefixtures("few_in_python", "small_sets")
def test_a_fine_tune_from_folder_to_numbers(folder):
    few = {"train": SHORT, "sample": FEW_IMAGES, "evaluate": ["--num-images", "96", "--steps", "2"]}
    space = follow(tutorial("fine-tune"), few)
    assert (
        smidgen.Delta.load(folder / "runs/greek/delta.safetensors").provenance.method == "difffit"
    )
    assert len(list((folder / "drawn").glob("*.png"))) == 2
    assert len(space["images"]) == 4
    after, other = (
        json.loads((folder / name).read_text()) for name in ("after.json", "after-1.json")
    )
    assert after["metrics"]["fd"] != other["metrics"]["fd"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_in_python")
def test_a_personalisation(folder):
    few = {
        "train": [*SHORT, "--class-images", "2"],
        "sample": FEW_IMAGES,
        "evaluate": ["--num-images", "24", "--steps", "2"],
        "explain": ["--num-images", "1", "--times", "1", "--steps", "2"],
    }
    space = follow(tutorial("personalise"), few)
    assert {path.name for path in folder.iterdir()} >= {"before", "after", "others", "explained"}
    assert len(space["half"]) == 2
    assert "clip_i" in json.dumps(json.loads((folder / "result.json").read_text())["metrics"])


@pytest.mark.slow
@pytest.mark.usefixtures("small_sets")
def test_a_comparison(folder):
    recipe, *commands = tutorial("compare")
    short = re.sub(r"steps = \d+", "steps = 2", recipe.text).replace("images = 240", "images = 62")
    follow([replace(recipe, text=short), *commands], {})
    report = (folder / "runs/methods/report.md").read_text()
    assert "difffit" in report
    assert len(list((folder / "runs/methods/runs").glob("*/result.json"))) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("small_sets")
def test_a_library_is_trained_served_and_asked(folder, capsys):
    space = follow(tutorial("serve"), {"train-many": SHORT})
    assert "['glyphs', 'greek', 'thai']" in capsys.readouterr().out
    assert len(space["drawn"].data) == 2
    assert Image.open(folder / "alpha.png").size == (32, 32)


@pytest.mark.slow
def test_pictures_are_changed_filled_in_and_restored(folder):
    blocks = tutorial("change-pictures")
    *first, again = blocks
    follow(first, {"sample": FEW_IMAGES})
    follow([again], {})
    for name in ("changed", "filled", "denoised", "enlarged", "grid"):
        assert len(list((folder / name).glob("*.png"))) == 2
    (drawn,) = (folder / "again").glob("*.png")
    assert drawn.read_bytes() == (folder / "grid" / drawn.name).read_bytes()
