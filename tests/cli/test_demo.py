"""The demo end to end with few steps on few of the shipped images; at full length: `make demo`."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from smidgen.cli.arguments import read_request
from smidgen.cli.demo import RECIPE, finished_result, parse_demo
from smidgen.cli.demo_report import summary
from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.data.embedded_sets import load_set
from smidgen.files.settings import read_recipe
from tests.fuzzing import changed_json

FLAGS = ("--steps", "4", "--validate-every", "2", "--checkpoint-every", "2", "--batch-size", "8")
SHORT = (*FLAGS, "--warmup-steps", "1", "--num-images", "48", "--sample-steps", "2")


@pytest.fixture(scope="module")
def few_letters(tmp_path_factory):
    """One picture of each Greek letter."""
    root = tmp_path_factory.mktemp("letters")
    letters = load_set("greek")
    for label, name in enumerate(letters.class_names):
        (root / name).mkdir()
        image = letters.images(np.flatnonzero(letters.label == label)[:1])[0]
        Image.fromarray(image).save(root / name / "0.png")
    return root


@pytest.fixture(scope="module")
def demo(few_letters, tmp_path_factory):
    """The arguments and the folder of a short demo that was run once."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    arguments = ["demo", "--output", str(folder), "--data", str(few_letters), *SHORT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMIDGEN_CACHE", str(folder.parent / "cache"))
        assert main(arguments) == 0
    return arguments, folder


@pytest.mark.slow
def test_the_demo_leaves_pictures_a_delta_and_numbers_for_each_part(demo):
    _, folder = demo
    document = json.loads((folder / "result.json").read_text())
    for side in ("before", "after"):
        assert document[side]["fd"] > 0
        assert 0 <= document[side]["class_agreement"] <= 1
        assert len(list((folder / side).glob("*.png"))) == 48
    assert document["protocol"]["num_reference"] >= 3000
    assert document["before"]["class_agreement_of_reference"] > 0.95
    parts = ("unpack", "load", "sample_before", "train", "sample_after", "evaluate", "total")
    assert all(document["seconds"][part] >= 0 for part in parts)
    assert set(document["class_agreement_by_step"]) == {"0", "2", "4"}
    for name in ("grid.png", "curves.png"):
        assert min(Image.open(folder / name).size) > 300
    delta = Delta.load(folder / "delta.safetensors")
    assert delta.num_parameters() == document["training"]["trainable"]
    assert document["training"]["share"] < 0.01
    assert (folder / "delta.safetensors").stat().st_size < 1_000_000


@pytest.mark.slow
def test_a_finished_demo_says_so_and_other_settings_are_refused(demo, smidgen):
    arguments, folder = demo
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}
    again = smidgen(*arguments)
    assert again.code == 0
    assert "finished" in again.err
    assert len(again.out.splitlines()) == 4
    assert again.out.splitlines()[-1] == str(folder)
    assert smidgen(*arguments, "--json").document == json.loads(
        (folder / "result.json").read_text()
    )
    refused = smidgen(*arguments, "--lr", "0.5")
    assert refused.code == 2
    assert "lr" in refused.err
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_a_demo_that_was_stopped_goes_on(demo, smidgen):
    arguments, folder = demo
    first = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    (folder / "after" / "000003-capital-beta.png").unlink()
    assert smidgen(*arguments).code == 0
    again = json.loads((folder / "result.json").read_text())
    for side in ("before", "after"):
        assert again[side] == first[side]


def test_another_method_does_without_the_options_of_the_recipes(smidgen, few_letters, tmp_path):
    arguments = ("--method", "bitfit", "--data", few_letters, "--output", tmp_path / "demo")
    recipe = smidgen("demo", *arguments, "--dry-run", "--json").document["recipe"]
    assert recipe["method"] == "bitfit"
    assert recipe["lr"] == read_recipe(RECIPE)["lr"]
    assert "blocks" not in recipe
    assert not (tmp_path / "demo").exists()


def test_the_summary_puts_kid_first_and_baselines_beside_the_agreement(tmp_path):
    before = {"kid": {"mean": 11.0}, "fd": 120.0, "class_agreement": 0.03}
    after = {"kid": {"mean": 0.1}, "fd": 9.0, "class_agreement": 0.9}
    baselines = {"class_agreement_by_chance": 0.02, "class_agreement_of_reference": 0.99}
    document = {
        **{"before": before, "after": after | baselines},
        "training": {"trainable": 10, "share": 0.01, "delta_bytes": 100},
        "protocol": {"num_images": 480},
        "settings": {"guidance": 1.5},
        "seconds": {"train": 1.0, "total": 2.0},
    }
    line = summary(document, tmp_path)[1]
    assert line.index("KID") < line.index("Frechet")
    assert "3% -> 90%" in line
    assert "by chance 2%" in line
    assert "real letters 99%" in line


def test_a_changed_result_is_no_finished_demo_or_can_be_shown(demo):
    arguments, folder = demo
    parsed = parse_demo(read_request("demo", arguments[1:]))
    path = folder / "result.json"
    content = path.read_bytes()
    document = json.loads(content)
    try:
        for seed in range(200):
            rng = random.Random(seed)
            changed = changed_json(document, rng)
            path.write_text(json.dumps(changed))
            found = finished_result(folder, parsed)
            if found is not None:
                assert len(summary(found, folder)) == 3
    finally:
        path.write_bytes(content)
    assert finished_result(folder, parsed) == document
