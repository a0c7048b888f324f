"""The verbs end to end on a tiny base: what they write, print and do when run again."""

import json
import re
import shutil
import tomllib

import numpy as np
import pytest
from PIL import Image

from smidgen import api
from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.files.standing import START_OVER
from smidgen.models.dit_weights import write_original_pt
from smidgen.models.pretrained import load_base
from tests.tiny.deltas import lora

from .conftest import train_arguments

SAMPLE = ("--steps", "3", "--guidance", "1.5")


def pictures(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_train_writes_the_delta_and_prints_its_path_last(smidgen, base, photos, tmp_path):
    run = tmp_path / "run"
    outcome = smidgen(*train_arguments(base, photos, run))
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == str(run / "delta.safetensors")
    delta = Delta.load(run / "delta.safetensors")
    assert delta.provenance.classes == ("dog", "elk")
    assert f"{delta.num_parameters():,}" in outcome.out


def test_train_again_says_finished_and_other_settings_are_refused(smidgen, base, photos, tmp_path):
    run = tmp_path / "run"
    assert smidgen(*train_arguments(base, photos, run)).code == 0
    before = (run / "delta.safetensors").read_bytes()
    again = smidgen(*train_arguments(base, photos, run))
    assert again.code == 0
    assert "finished" in again.err
    assert (run / "delta.safetensors").read_bytes() == before

    refused = smidgen(*train_arguments(base, photos, run, "--lr", "0.5"))
    assert refused.code == 2
    assert "lr" in refused.err
    assert (run / "delta.safetensors").read_bytes() == before
    assert smidgen(*train_arguments(base, photos, run, "--lr", "0.5", "--force")).code == 0
    assert (run / "delta.safetensors").read_bytes() != before


def test_a_recipe_gives_what_flags_give_and_flags_override_it(smidgen, base, photos, tmp_path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'base = "{base}"\ndata = "{photos}"\nmethod = "difffit"\nblocks = "1-1"\n'
        "steps = 2\nbatch-size = 4\ncheckpoint_every = 1\ntrackers = []\nvalidation_share = 0.0\n"
        "num_threads = 1\nseed = 3\n"
    )
    by_recipe, by_flags = tmp_path / "recipe", tmp_path / "flags"
    assert smidgen("train", recipe, "--output", by_recipe, "--seed", 4).code == 0
    flags = train_arguments(base, photos, by_flags, "--blocks", "1-1", "--seed", "4")
    assert smidgen(*flags).code == 0
    deltas = [(run / "delta.safetensors").read_bytes() for run in (by_recipe, by_flags)]
    assert deltas[0] == deltas[1]
    assert Delta.load(by_flags / "delta.safetensors").provenance.config["blocks"] == "1-1"


def test_the_recipe_that_a_run_leaves_trains_the_same_delta(smidgen, base, photos, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert smidgen(*train_arguments(base, photos, first, "--lr", "0.1")).code == 0
    assert smidgen("train", first / "recipe.toml", "--output", second).code == 0
    deltas = [(run / "delta.safetensors").read_bytes() for run in (first, second)]
    assert deltas[0] == deltas[1]


def test_the_recipe_of_a_file_has_its_codec_and_shift(smidgen, base, photos, tmp_path):
    file, shifted = tmp_path / "base.pt", ("--frequency-shift", "1", "--lr", "0.1")
    write_original_pt(load_base(base).denoiser, file)
    plain, first, second = (tmp_path / name for name in ("plain", "first", "second"))
    codec = ("--codec", str(base / "vae"))
    assert smidgen(*train_arguments(file, photos, plain, *codec, "--lr", "0.1")).code == 0
    assert smidgen(*train_arguments(file, photos, first, *codec, *shifted)).code == 0
    assert smidgen("train", first / "recipe.toml", "--output", second).code == 0
    runs = (plain, first, second)
    deltas = [(run / "delta.safetensors").read_bytes() for run in runs]
    assert deltas[0] != deltas[1] == deltas[2]
    refused = smidgen(*train_arguments(file, photos, first, *codec, "--lr", "0.1"))
    assert (refused.code, "frequency_shift 1.0" in refused.err) == (2, True)

    draw = ("--reference", photos, "--num-images", 2, "--steps", 2)
    measured = [smidgen("evaluate", run, *draw, "--json") for run in (plain, first)]
    assert [outcome.code for outcome in measured] == [0, 0], measured[0].err
    assert measured[0].document["metrics"] != measured[1].document["metrics"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompt", "a {class}"), "prompt is of no use"),
        (("--timestep-shift", "2"), "timestep_shift is of no use"),
        (("--metrics-features", "foo"), 'unknown features "foo"'),
        (("--cache-dir", "PHOTOS/cache"), "the cache folder PHOTOS/cache lies in the image folder"),
        (("--output", "PHOTOS/run"), "the output PHOTOS/run lies in the image folder"),
        (("--init", "nope"), "no such delta to begin from: nope"),
        (("--init", "TRAINED", "--method", "lora"), "init is a delta of"),
    ],
)
def test_a_dry_run_refuses_what_the_training_refuses(
    smidgen, base, photos, tmp_path, trained, flags, said
):
    def placed(text):
        return text.replace("PHOTOS", str(photos)).replace("TRAINED", str(trained))

    arguments = train_arguments(base, photos, tmp_path / "run", *map(placed, flags))
    for outcome in (smidgen(*arguments, "--dry-run"), smidgen(*arguments)):
        assert outcome.code == 2
        assert placed(said) in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_a_finished_run_sees_that_its_images_have_changed(
    smidgen, base, photos, tmp_path
):
    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    arguments = train_arguments(base, own, tmp_path / "run")
    assert smidgen(*arguments).code == 0
    assert smidgen(*arguments, "--dry-run").code == 0
    next(own.rglob("*.png")).unlink()
    for outcome in (smidgen(*arguments, "--dry-run"), smidgen(*arguments)):
        assert (outcome.code, "the images changed since" in outcome.err) == (2, True)


def test_train_dry_run_counts_and_writes_nothing(smidgen, base, photos, tmp_path, trained):
    run = tmp_path / "run"
    outcome = smidgen(*train_arguments(base, photos, run, "--dry-run", "--json"))
    assert outcome.code == 0
    assert not run.exists()
    assert outcome.document["trainable"] == Delta.load(trained).num_parameters()
    assert outcome.document["delta_bytes"] > 0
    assert outcome.document["recipe"]["steps"] == 2
    shown = smidgen(*train_arguments(base, photos, run, "--dry-run"))
    resolved = tomllib.loads(shown.out)
    assert resolved["batch_size"] == 4
    assert resolved["blocks"] == "auto"
    assert "# trainable: " in shown.out
    assert "# memory" in shown.out
    assert "# warning" not in shown.out
    larger = smidgen(*train_arguments(base, photos, run, "--dry-run", "--image-size", "16"))
    assert re.search(
        "# warning: base .* trained at 8 pixels .* at 16: positions .* ext", larger.out
    )


def test_a_dry_run_counts_the_memory_of_a_device_that_is_not_here(
    smidgen, base, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments = train_arguments(base, photos, tmp_path / "run", "--offload", "--device")
    outcome = smidgen(*arguments, "cuda", "--dry-run")
    assert outcome.code == 2
    assert "no cuda device was found" in outcome.err
    assert re.search(r"# memory offloaded: \d", outcome.out)
    assert smidgen(*arguments, "cuda").code == 2
    outcome = smidgen(*arguments, "cpu", "--dry-run")
    assert (outcome.code, "on a CPU both are the same: leave it out" in outcome.err) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd-1.5", "DiT-S/2"])
def test_train_dry_run_counts_an_architecture_as_inspect_does(smidgen, photos, tmp_path, name):
    settings = ("--method", "lora", "--gradient-checkpointing", "--base-precision", "bf16")
    arguments = ("--base", name, "--data", photos, "--output", tmp_path / "run", *settings)
    planned = smidgen("train", *arguments, "--dry-run", "--json").document
    classes = planned["num_classes"]
    counted = api.inspect(
        name,
        num_classes=classes,
        method="lora",
        gradient_checkpointing=True,
        base_precision="bf16",
        device="cpu",
    )
    for fact in ("trainable", "total", "delta_bytes"):
        assert planned[fact] == counted[fact]
    assert planned["memory"]["step"] == counted["memory"]["step"]
    assert planned["memory"]["weights"] == counted["memory"]["weights"]
    assert "training needs its weights" in planned["warning"]
    for more in ((), ("--dry-run", "--time")):
        refused = smidgen("train", *arguments, *more)
        assert refused.code == 2
        assert f"smidgen inspect {name} needs none" in refused.err


def test_json_makes_stdout_one_document(smidgen, base, photos, tmp_path):
    outcome = smidgen(*train_arguments(base, photos, tmp_path / "run", "--json"))
    assert outcome.document["delta"] == str(tmp_path / "run" / "delta.safetensors")
    assert outcome.document["steps"] == 2


def test_sample_writes_exactly_one_png_an_image(smidgen, base, trained, tmp_path):
    folder = tmp_path / "samples"
    outcome = smidgen(
        *("sample", "--base", base, "--delta", trained, "--classes", "elk,dog"),
        *("--num-images", 5, "--output", folder, *SAMPLE),
    )
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == str(folder)
    assert sorted(pictures(folder)) == [
        *("000000-elk.png", "000001-dog.png", "000002-elk.png"),
        *("000003-dog.png", "000004-elk.png"),
    ]
    assert {path.suffix for path in folder.iterdir()} == {".png", ".json"}
    assert Image.open(folder / "000000-elk.png").size == (8, 8)
    record = json.loads((folder / "sample.json").read_text())
    assert record["images"]["000001-dog.png"] == "dog"
    assert record["finished"] is True


@pytest.mark.parametrize("precision", ["int8", "nf4"])
@pytest.mark.parametrize("verb", ["train", "sample"])
def test_frozen_weights_are_kept_as_the_command_says(
    smidgen, base, photos, tmp_path, verb, precision
):
    output = tmp_path / "out"
    common = ("--base", base, "--base-precision", precision, "--output", output)
    more = {
        "train": ("--data", photos, "--method", "bitfit", "--steps", 1, "--batch-size", 2),
        "sample": ("--classes", "ant", "--steps", 2, "--guidance", 1),
    }[verb]
    assert smidgen(verb, *common, *more).code == 0
    if verb == "sample":
        kept = load_base(base, base_precision=precision)
        (image,) = api.sample(kept, classes="ant", steps=2, guidance=1)
        (drawn,) = output.glob("*.png")
        assert Image.open(drawn).tobytes() == image.tobytes()
    again = smidgen(verb, *("--base", base, "--output", output), *more)
    assert again.code == 2
    assert f'base_precision "{precision}" -> "none"' in again.err


def test_a_lora_without_classes_draws_those_of_its_base_as_in_python(smidgen, base, tmp_path):
    whole = load_base(base)
    path = tmp_path / "imported.safetensors"
    lora(whole.denoiser, fingerprint=whole.fingerprint).save(path)
    common = ("sample", "--base", base, "--delta", path, "--steps", 2, "--num-images", 2)
    outcome = smidgen(*common, "--classes", "cat,ant", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    settings = {"classes": ("cat", "ant"), "num_images": 2, "steps": 2}
    expected = api.sample(whole, delta=path, **settings)
    for place, image in zip(sorted((tmp_path / "out").glob("*.png")), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(place)), np.asarray(image))

    unknown = {"classes": ("dog",), "num_images": 2, "steps": 2}
    with pytest.raises(UsageError, match='unknown class "dog"') as caught:
        api.sample(whole, delta=path, **unknown)
    refused = smidgen(*common, "--classes", "dog", "--output", tmp_path / "none")
    assert (refused.code, refused.complaint) == (2, [f"smidgen: {caught.value}"])


def test_the_images_do_not_depend_on_the_batch_size(smidgen, base, tmp_path):
    sampled = []
    for size in (1, 4):
        folder = tmp_path / f"by-{size}"
        arguments = ("--num-images", 4, "--batch-size", size, "--output", folder, *SAMPLE)
        assert smidgen("sample", "--base", base, *arguments).code == 0
        sampled.append({n: np.asarray(Image.open(folder / n), int) for n in pictures(folder)})
    assert sampled[0].keys() == sampled[1].keys()
    for name, image in sampled[0].items():
        # batches of other sizes may run other kernels, whose last bit may turn a level
        assert np.abs(image - sampled[1][name]).max() <= 1


def test_sample_again_is_finished_repairs_or_refuses(smidgen, base, tmp_path):
    folder = tmp_path / "samples"
    arguments = ("sample", "--base", base, "--num-images", 3, "--output", folder, *SAMPLE)
    assert smidgen(*arguments).code == 0
    first = pictures(folder)
    assert "already" in smidgen(*arguments).err

    (folder / "000001-bee.png").unlink()
    assert smidgen(*arguments).code == 0
    assert pictures(folder) == first

    refused = smidgen(*arguments, "--seed", 1)
    assert refused.code == 2
    assert "seed 0 -> 1" in refused.err
    assert pictures(folder) == first
    assert smidgen(*arguments, "--num-images", 2, "--seed", 1, "--force").code == 0
    assert len(pictures(folder)) == 2


def test_sample_never_touches_pictures_that_are_not_its_own(smidgen, base, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "holiday.png")
    for extra in ((), ("--force",)):
        outcome = smidgen("sample", "--base", base, "--output", folder, *SAMPLE, *extra)
        assert outcome.code == 2
        assert "holiday.png" in outcome.err
    assert [path.name for path in folder.iterdir()] == ["holiday.png"]


def test_inspect_counts_what_training_trains(smidgen, base, trained):
    counted = smidgen("inspect", base, "--num-classes", 2, "--json").document
    delta = Delta.load(trained)
    assert counted["trainable"] == delta.num_parameters()
    assert counted["share"] == counted["trainable"] / counted["total"]
    shown = smidgen("inspect", trained, "--json").document
    assert shown["trainable"] == delta.num_parameters()
    assert shown["classes"] == ["dog", "elk"]


@pytest.mark.parametrize(
    ("method", "trainable"),
    [("difffit", 835_264), ("bitfit", 607_136), ("full", 673_799_072)],
)
def test_inspect_of_the_largest_dit_gives_the_papers_counts(smidgen, method, trainable):
    arguments = ("inspect", "DiT-XL/2", "--num-classes", 101, "--method", method, "--json")
    document = smidgen(*arguments).document
    assert document["trainable"] == trainable
    assert document["delta_bytes"] == 4 * trainable


def test_a_methods_own_flags_are_flags_of_inspect(smidgen):
    half, whole = (
        smidgen("inspect", "DiT-S/2", "--blocks", blocks, "--json").document["trainable"]
        for blocks in ("half", "all")
    )
    assert half < whole


@pytest.mark.parametrize("kind", ["dit", "diffusers"])
def test_fold_writes_the_weights_and_refuses_to_overwrite(smidgen, base, trained, tmp_path, kind):
    output = tmp_path / ("folded.pt" if kind == "dit" else "folded")
    arguments = ("--delta", trained, "--format", kind, "--output", output)
    outcome = smidgen("fold", "--base", base, *arguments)
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == str(output)
    assert output.exists()
    again = smidgen("fold", "--base", base, *arguments)
    assert again.code == 2
    assert START_OVER in again.err
    assert smidgen("fold", "--base", base, *arguments, "--force").code == 0


def test_evaluate_prints_the_numbers_with_their_protocol(smidgen, photos, tmp_path):
    result, statistics = tmp_path / "result.json", tmp_path / "statistics.npz"
    files = ("--output", result, "--statistics", statistics)
    outcome = smidgen("evaluate", photos, "--reference", photos, *files)
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == str(result)
    assert re.search(r"Frechet distance +0\.00 ", outcome.out)
    document = json.loads(result.read_text())
    assert document["metrics"]["class_agreement"] is None
    assert document["protocol"]["num_images"] == 8
    assert "warning: 8 images for 128 feature dimensions" in outcome.err

    other = ("--output", tmp_path / "other.json", "--json")
    again = smidgen("evaluate", photos, "--reference", statistics, "--features", "glyphs", *other)
    assert again.document["metrics"] == document["metrics"]
    refused = smidgen("evaluate", photos, "--reference", statistics, "--output", result)
    assert refused.code == 2
    assert START_OVER in refused.err


def test_python_m_is_the_same_command(base):
    import subprocess
    import sys

    command = [sys.executable, "-m", "smidgen.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("smidgen ")


def test_unpack_writes_a_shipped_set_and_again_leaves_it(smidgen, tmp_path):
    folder = tmp_path / "georgian"
    outcome = smidgen("unpack", "georgian", "--output", folder, "--json")
    assert outcome.code == 0
    document = json.loads(outcome.out)
    files = {split: list((folder / split).glob("*/*.png")) for split in ("train", "test")}
    assert {split: len(found) for split, found in files.items()} == {
        "train": document["train"],
        "test": document["test"],
    }
    assert smidgen("unpack", "georgian", "--output", folder).code == 0
    misspelt = smidgen("unpack", "gorgian", "--output", tmp_path / "other")
    assert misspelt.code == 2
    assert 'did you mean "georgian"' in misspelt.err


def test_unpack_into_a_folder_with_other_contents_is_refused_before_too(smidgen, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for extra in ((), ("--dry-run",)):
        outcome = smidgen("unpack", "georgian", "--output", tmp_path, *extra)
        assert outcome.code == 1
        assert "has other contents" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
