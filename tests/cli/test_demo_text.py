"""The demo of a subject end to end with few steps; at full length: `make demo-text`."""

import json

import pytest
from PIL import Image

from smidgen.cli.arguments import read_request
from smidgen.cli.demo_text import class_of, finished_result, parse_demo, summary
from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.models.names import shipped_names

FLAGS = ("--steps", "2", "--warmup-steps", "1", "--batch-size", "1", "--class-images", "2")
SHORT = (*FLAGS, "--checkpoint-every", "2", "--num-images", "13", "--sample-steps", "2")

ships = pytest.mark.skipif(
    "glyphs-text" not in shipped_names(), reason="the base glyphs-text is not here"
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The arguments and the folder of a short demo that was run once."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    arguments = ["demo", "--text", "--subject", "fish-line", "--output", str(folder), *SHORT]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMIDGEN_CACHE", str(folder.parent / "cache"))
        assert main(arguments) == 0
    return arguments, folder


@pytest.mark.slow
@ships
def test_the_demo_leaves_a_page_a_delta_and_numbers_with_ceiling_and_floor(demo):
    _, folder = demo
    document = json.loads((folder / "result.json").read_text())
    for name in ("clip_i", "clip_t"):
        assert -1 <= document["metrics"][name] <= 1
        assert {f"{name}_of_base", f"{name}_of_reference"} <= set(document["baselines"])
    assert 0 <= document["metrics"]["ink_and_ground"] <= 1
    assert document["protocol"]["reference"] == str(folder / "subjects" / "fish-line")
    assert len(document["by_prompt"]) == 13
    assert min(Image.open(folder / "page.png").size) > 600
    delta = Delta.load(folder / "delta.safetensors")
    assert delta.num_parameters() == document["training"]["trainable"]
    assert delta.provenance.training["dreambooth"]["class_name"] == "fish"
    parts = ("unpack", "load", "train", "evaluate", "pictures", "total")
    assert all(document["seconds"][part] >= 0 for part in parts)


@pytest.mark.slow
@ships
def test_a_finished_demo_says_so_and_other_settings_are_refused(demo, smidgen):
    arguments, folder = demo
    again = smidgen(*arguments)
    assert (again.code, again.out.splitlines()[-1]) == (0, str(folder))
    assert "finished" in again.err
    assert len(again.out.splitlines()) == 4
    refused = smidgen(*arguments, "--lr", "0.5")
    assert refused.code == 2
    assert "lr" in refused.err


@ships
def test_a_changed_result_is_no_finished_demo(demo):
    arguments, folder = demo
    parsed = parse_demo(read_request("demo --text", arguments[2:]))
    path = folder / "result.json"
    content = path.read_bytes()
    document = json.loads(content)
    try:
        for name in ("metrics", "baselines", "training", "seconds", "settings"):
            path.write_text(json.dumps(document | {name: {}}))
            assert finished_result(folder, parsed) is None
    finally:
        path.write_bytes(content)
    assert finished_result(folder, parsed) == document


def test_the_summary_reads_as_before_after_and_what_stands_beside(tmp_path):
    document = {
        "training": {"trainable": 10, "share": 0.01, "delta_bytes": 100},
        "metrics": {"clip_i": 0.7, "clip_t": 0.2, "ink_and_ground": 0.9, "drift": 0.05},
        "baselines": {
            "clip_i_of_base": 0.4,
            "clip_i_of_reference": 0.8,
            "clip_t_of_base": 0.25,
            "ink_and_ground_of_base": 0.95,
            "drift_of_other_noise": 0.3,
        },
        "seconds": {"train": 1.0, "total": 2.0},
    }
    line = summary(document, tmp_path)[1]
    assert "CLIP-I to the subject 0.40 -> 0.70 (real pictures 0.80, 75% of the way)" in line
    assert "CLIP-T 0.25 -> 0.20" in line
    assert "ink and ground of the prompt 95% -> 90%" in line
    assert "drift of other prompts 0.05 (other noise 0.30)" in line
    document["baselines"]["drift_of_other_noise"] = None
    assert summary(document, tmp_path)[1].endswith("drift of other prompts 0.05")


def test_a_subject_is_of_the_class_that_its_name_begins_with():
    assert class_of("owl-ink") == {"class_name": "owl", "prompt": "a picture of an {class}"}
    assert class_of("dog-line") == {"class_name": "dog", "prompt": "a picture of a {class}"}


def test_a_subject_that_does_not_ship_is_refused_by_name(smidgen, tmp_path):
    refused = smidgen("demo", "--text", "--subject", "owl-inc", "--output", tmp_path / "demo")
    assert refused.code == 2
    assert 'did you mean "owl-ink"' in refused.err
    assert not (tmp_path / "demo").exists()
