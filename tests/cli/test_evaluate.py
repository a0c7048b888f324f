"""`smidgen evaluate` and `smidgen compare`: what is measured, written, refused and shown."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from smidgen.cli.compare import names
from smidgen.cli.main import main
from smidgen.files.standing import START_OVER
from tests.launch import finish, start

from .conftest import train_arguments

DRAW = ("--num-images", 6, "--steps", 2, "--seed", 3)


@pytest.fixture(scope="module")
def run(base, photos, tmp_path_factory):
    """The folder of a short training."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(train_arguments(base, photos, folder)) == 0
    return folder


@pytest.fixture
def no_result(run):
    """The run's folder without what an earlier test wrote there."""
    (run / "result.json").unlink(missing_ok=True)
    return run


def foreign_images(folder):
    """Pictures with names as another program gives them."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(5):
        pixels = generator.integers(0, 255, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"sample_{number}.png")
    return folder


def test_a_run_is_sampled_and_measured_as_its_sampled_folder_is(
    smidgen, no_result, base, photos, tmp_path
):
    outcome = smidgen("evaluate", no_result, "--reference", photos, *DRAW)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == str(no_result / "result.json")
    document = json.loads((no_result / "result.json").read_text())
    assert document["protocol"]["num_images"] == 6
    assert document["protocol"]["class_balance"] == {
        **{"kind": "even", "num_classes": 2},
        **{"min_per_class": 3, "max_per_class": 3},
    }
    sampling = document["protocol"]["sampling"]
    assert (sampling["steps"], sampling["guidance"], sampling["seed"]) == (2, 1.5, 3)
    assert not list(no_result.rglob("000000*"))  # nothing was written on the way

    delta = no_result / "delta.safetensors"
    folder = tmp_path / "samples"
    drawn = ("--delta", delta, "--output", folder, *DRAW)
    assert smidgen("sample", "--base", base, *drawn).code == 0
    from_files = smidgen("evaluate", folder, "--reference", photos, "--json").document
    assert from_files["metrics"] == document["metrics"]
    both = (from_files["protocol"]["sampling"], sampling)
    for name in ("delta_sha256", "steps", "guidance", "seed", "sampler", "precision"):
        assert both[0][name] == both[1][name]
    assert smidgen("compare", no_result, folder).code == 0


def test_a_delta_alone_finds_its_base_and_writes_beside_itself(
    smidgen, no_result, photos, tmp_path
):
    delta = tmp_path / "step-2.safetensors"
    delta.write_bytes((no_result / "delta.safetensors").read_bytes())
    outcome = smidgen("evaluate", delta, "--reference", photos, *DRAW)
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == str(tmp_path / "step-2.result.json")


def test_the_same_request_is_finished_and_another_is_refused(smidgen, no_result, photos):
    arguments = ("evaluate", no_result, "--reference", photos, *DRAW)
    assert smidgen(*arguments).code == 0
    before = (no_result / "result.json").read_bytes()
    again = smidgen(*arguments)
    assert again.code == 0
    assert "already holds" in again.err
    assert (no_result / "result.json").read_bytes() == before
    refused = smidgen(*arguments, "--guidance", 4)
    assert refused.code == 2
    assert "guidance 1.5 -> 4.0" in refused.err
    assert (no_result / "result.json").read_bytes() == before
    assert smidgen(*arguments, "--guidance", 4, "--force").code == 0
    document = json.loads((no_result / "result.json").read_text())
    assert document["protocol"]["sampling"]["guidance"] == 4


def test_a_folder_that_changed_is_another_request(smidgen, photos, tmp_path):
    folder = foreign_images(tmp_path / "theirs")
    arguments = ("evaluate", folder, "--reference", photos)
    assert smidgen(*arguments).code == 0
    (folder / "sample_4.png").unlink()
    refused = smidgen(*arguments)
    assert refused.code == 2
    assert "images changed" in refused.err


def test_any_programs_folder_gives_a_table_and_a_result(smidgen, photos, tmp_path):
    folder = foreign_images(tmp_path / "theirs")
    outcome = smidgen("evaluate", folder, "--reference", photos)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "5 images"
    assert lines[1] == f"glyphs features, against 8 images of {photos}"
    assert "±" in lines[2]
    assert lines[3].startswith("  Frechet distance")
    assert "5 images for 128 dimensions" in lines[3]
    assert "have not seen this domain" in lines[3]
    assert lines[4].split() == ["class", "agreement", "unknown"]
    assert lines[-1] == str(folder / "result.json")
    assert "nothing says what each image" in outcome.err
    document = json.loads((folder / "result.json").read_text())
    assert document["protocol"]["sampling"] is None


def test_agreement_stands_beside_chance_and_real_images(smidgen, tmp_path):
    from smidgen.data.embedded_sets import load_set

    letters = load_set("greek")
    for split, wanted in (("made", ~letters.is_test), ("real", letters.is_test)):
        for label in (0, 1):
            chosen = np.flatnonzero((letters.label == label) & wanted)[:4]
            place = tmp_path / split / letters.class_names[label]
            place.mkdir(parents=True)
            for number, image in enumerate(letters.images(chosen)):
                Image.fromarray(image).save(place / f"{number}.png")
    outcome = smidgen("evaluate", tmp_path / "made", "--reference", tmp_path / "real")
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if "class agreement" in line]
    document = json.loads((tmp_path / "made" / "result.json").read_text())
    real = document["baselines"]["class_agreement_of_reference"]
    chance = document["baselines"]["class_agreement_by_chance"]
    assert f"(chance {chance:.1%}, real images {real:.1%})" in line
    assert f"{document['metrics']['class_agreement']:.1%}" in line
    assert "not seen" not in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metrics", "fid"), ('unknown metric "fid"',)),
        (("--metrics", "dino_i"), ("dino_i needs the features dinov2",)),
        (("--features", "glyphs,inceptoin"), ('unknown features "inceptoin"',)),
        (("--num-images", "5"), ("--num-images is about drawing samples",)),
        (("--prompt", "a photo"), ("{}",)),
        (("--layout", "food-101", "--split", "trian"), ("trian",)),
        (("--statistics", "x.npz", "--features", "glyphs,inception"), ("one kind",)),
    ],
)
def test_what_makes_no_sense_is_refused(smidgen, photos, tmp_path, arguments, words):
    folder = foreign_images(tmp_path / "theirs")
    outcome = smidgen("evaluate", folder, "--reference", photos, *arguments)
    assert outcome.code == 2, outcome.err
    assert len(outcome.complaint) == 1
    for word in words:
        assert word in outcome.err
    assert not (folder / "result.json").exists()


def test_a_class_that_the_reference_lacks_is_refused_before_sampling(
    smidgen, no_result, photos, tmp_path, monkeypatch
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog").symlink_to(photos / "dog")
    (tmp_path / "photos" / "cat").symlink_to(photos / "elk")
    monkeypatch.setattr("smidgen.sampling.draw.draw_batch", None)  # nothing may be drawn
    outcome = smidgen("evaluate", no_result, "--reference", tmp_path / "photos", *DRAW)
    assert outcome.code == 1
    assert 'no class "elk"' in outcome.err
    assert not (no_result / "result.json").exists()


def test_a_run_that_is_not_trained_yet_is_refused(smidgen, photos, tmp_path):
    (tmp_path / "recipe.toml").write_text("")
    outcome = smidgen("evaluate", tmp_path, "--reference", photos)
    assert outcome.code == 2
    assert "run without delta.safetensors" in outcome.err


def test_a_file_that_is_no_result_is_never_replaced_unasked(smidgen, photos, tmp_path):
    folder = foreign_images(tmp_path / "theirs")
    (folder / "result.json").write_text('{"mine": 1}')
    outcome = smidgen("evaluate", folder, "--reference", photos)
    assert outcome.code == 2
    assert START_OVER in outcome.err
    assert (folder / "result.json").read_text() == '{"mine": 1}'


def test_comparing_refuses_other_protocols_unless_told(smidgen, no_result, photos, tmp_path):
    paths = []
    for steps in (2, 3):
        paths.append(tmp_path / f"steps-{steps}" / "result.json")
        more = ("--num-images", 6, "--steps", steps, "--output", paths[-1])
        assert smidgen("evaluate", no_result, "--reference", photos, *more).code == 0
    refused = smidgen("compare", *paths)
    assert refused.code == 2
    assert "sampling.steps: 2 in" in refused.err
    assert "--any-protocol" in refused.err
    shown = smidgen("compare", *paths, "--any-protocol")
    assert shown.code == 0
    assert "FD ↓" in shown.out
    assert "different: sampling.steps" in shown.out
    comparison = smidgen("compare", *paths, "--any-protocol", "--json").document
    measured = [json.loads(path.read_text())["metrics"] for path in paths]
    assert [row["metrics"] for row in comparison["rows"]] == measured


def made(folder, **changes):
    """A result with two warnings."""
    document = {
        "metrics": {"fd": 2.0},
        "protocol": {"features": "glyphs", "num_images": 9, "num_reference": 8, "reference": "x"},
        "warnings": ["few images", f"of {folder.name} alone"],
    }
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(document | changes))
    return folder


def test_compare_shows_the_table_first_and_each_warning_once(tmp_path):
    """As case F18, with both streams in one file as on a terminal."""
    folders = [made(tmp_path / name) for name in ("one", "two")]
    command = [sys.executable, "-m", "smidgen.cli", "compare", *map(str, folders)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    head, *rows, first, second, third = done.stdout.splitlines()
    assert "FD ↓" in head
    assert [row.split()[0] for row in rows] == [str(folder) for folder in folders]
    assert first == f"warning: {folders[0]}, {folders[1]}: few images"
    assert second == f"warning: {folders[0]}: of one alone"
    assert third == f"warning: {folders[1]}: of two alone"


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "text", [DEEP, '{"metrics": {"fd": 1.0}, "protocol": 3}', '{"metrics": 1}']
)
def test_a_result_that_is_none_is_one_line_for_compare_and_is_not_replaced(
    text, smidgen, photos, tmp_path
):
    """As cases A12 and A13."""
    folder, other = foreign_images(tmp_path / "theirs"), made(tmp_path / "other")
    (folder / "result.json").write_text(text)
    for arguments in (("compare", folder, other), ("evaluate", folder, "--reference", photos)):
        outcome = smidgen(*arguments)
        assert outcome.code in (1, 2)
        assert len(outcome.complaint) == 1
    assert (folder / "result.json").read_text() == text


def test_a_finished_result_with_little_in_it_is_shown(smidgen, photos, tmp_path):
    folder = foreign_images(tmp_path / "theirs")
    arguments = ("evaluate", folder, "--reference", photos)
    assert smidgen(*arguments).code == 0
    request = json.loads((folder / "result.json").read_text())["request"]
    bare = {"metrics": {"fd": 1.0}, "protocol": {"features": "glyphs"}, "request": request}
    (folder / "result.json").write_text(json.dumps(bare))
    outcome = smidgen(*arguments)
    assert outcome.code == 0, outcome.err
    assert "an unknown number of images" in outcome.out


def test_wrong_results_to_compare_are_refused(smidgen, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "c.json").write_text("{")
    for arguments, word, code in (
        ((), "missing results", 2),
        ((tmp_path / "a.json",), "two or more", 2),
        ((tmp_path / "a.json", tmp_path / "none.json"), "no such result", 2),
        ((tmp_path / "a.json", tmp_path / "a.json"), "given twice", 2),
        ((tmp_path / "a.json", tmp_path), "there is no", 1),
        ((tmp_path / "a.json", tmp_path / "b.json"), "Expected `object`, got `array`", 1),
        ((tmp_path / "a.json", tmp_path / "c.json"), "cannot read", 1),
    ):
        outcome = smidgen("compare", *arguments)
        assert outcome.code == code, outcome.err
        assert word in outcome.err
        assert len(outcome.complaint) == 1


def test_results_are_named_by_their_folders_where_these_tell_them_apart(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    assert names([one, two / "result.json"]) == [str(one), str(two)]
    files = [two / "a.result.json", two / "b.result.json"]
    assert names(files) == [str(path) for path in files]


def test_statistics_are_written_once_and_a_finished_request_leaves_them(smidgen, photos, tmp_path):
    folder, path = foreign_images(tmp_path / "made"), tmp_path / "photos.npz"
    arguments = ("evaluate", folder, "--reference", photos, "--statistics", path)
    assert smidgen(*arguments).code == 0
    before = path.read_bytes()
    again = smidgen(*arguments)
    assert (again.code, path.read_bytes()) == (0, before)
    assert "already" in again.err
    other = smidgen(*arguments, "--output", tmp_path / "other.json")
    assert other.code == 2
    assert START_OVER in other.err


@pytest.mark.slow
def test_several_processes_write_the_statistics_too(photos, tmp_path):
    folder = foreign_images(tmp_path / "made")
    arguments = ["evaluate", folder, "--reference", photos, "--device", "cpu"]
    arguments += ["--statistics", tmp_path / "photos.npz"]
    for code, _, error in finish(start(["-m", "smidgen.cli", *map(str, arguments)], 2)):
        assert code == 0, error
    assert (tmp_path / "photos.npz").is_file()
    assert (folder / "result.json").is_file()


def test_what_a_foreign_result_says_does_not_steer_the_terminal(smidgen, tmp_path):
    """Names of metrics and features, notes and warnings may be anybody's."""
    evil = "\x1b[2J\x9b1m\n"
    changes = {
        "metrics": {"fd": 1.0, evil: 2.0},
        "notes": {"fd": [evil]},
        "protocol": {"features": evil, "num_images": 9, "num_reference": 8, "reference": evil},
        "warnings": [evil],
    }
    folders = [made(tmp_path / name, **changes) for name in ("one", "two")]
    outcome = smidgen("compare", *folders, "--any-protocol")
    assert outcome.code == 0
    assert (outcome.out + outcome.err).replace("\n", "").isprintable()
    assert len(outcome.out.splitlines()) == 3
