"""Runs and deltas are measured straight from the sampler, each process drawing its part."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import smidgen
from smidgen.api.evaluation import evaluate, source_kind
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.processes import own_device
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos

DRAW = SamplingConfig(num_images=7, steps=3, guidance=2.0, seed=4)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture
def delta(base, tmp_path):
    """The file of a delta whose every value is off its start."""
    generator = torch.Generator().manual_seed(1)
    built = build_delta("difffit", base, configure("difffit"), ("bee", "dog"), generator)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    built.save(tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def test_the_parts_of_all_processes_are_the_batches_of_one(base, delta):
    config = SamplingConfig(num_images=5, steps=2, seed=4, batch_size=2)
    drawing = prepare(base, config, delta=Delta.load(delta))

    def batches(part):
        return list(drawing.batches(part=part))

    whole = batches((0, 1))
    parts = [batches((number, 2)) for number in range(2)]
    found = sorted((one for part in parts for one in part), key=lambda one: one[0].start)
    assert [list(numbers) for numbers, _ in found] == [[0, 1], [2, 3], [4]]
    for (_, images), (_, expected) in zip(found, whole, strict=True):
        np.testing.assert_array_equal(images, expected)


def test_a_delta_is_measured_as_the_images_that_it_gives(base, delta, photos, tmp_path):
    document = evaluate(delta, photos, base=base, sampling=replace(DRAW, batch_size=4))
    images = smidgen.sample(
        base, delta=delta, num_images=7, steps=3, guidance=2.0, seed=4, batch_size=4
    )
    for number, image in enumerate(images):
        (tmp_path / "drawn" / ("bee", "dog")[number % 2]).mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "drawn" / ("bee", "dog")[number % 2] / f"{number}.png")
    from_files = smidgen.evaluate(tmp_path / "drawn", photos)
    assert document["metrics"]["fd"] == pytest.approx(from_files["metrics"]["fd"], rel=1e-6)
    assert document["protocol"]["class_balance"] == from_files["protocol"]["class_balance"]
    sampling = document["protocol"]["sampling"]
    assert (sampling["steps"], sampling["guidance"], sampling["seed"]) == (3, 2.0, 4)
    assert (sampling["base"], sampling["base_fingerprint"]) == (base.name, base.fingerprint)
    assert sampling["method"] == "difffit"


def test_a_run_is_its_delta(base, delta, photos):
    (delta.parent / "recipe.toml").write_text('base = "glyphs"\nimage_size = 8\n')
    run = evaluate(delta.parent, photos, base=base, sampling=DRAW)
    assert run["metrics"] == evaluate(delta, photos, base=base, sampling=DRAW)["metrics"]
    assert run["protocol"]["images"] == str(delta.parent)


def test_the_base_is_what_the_recipe_names_else_what_the_delta_was_made_for(
    base, delta, photos, monkeypatch
):
    asked = []

    def load_base(name, **options):
        asked.append((name, options["image_size"]))
        return base

    monkeypatch.setattr("smidgen.api.evaluation.load_base", load_base)
    evaluate(delta, photos, sampling=DRAW)
    (delta.parent / "recipe.toml").write_text('base = "theirs"\nimage_size = 8\n')
    evaluate(delta.parent, photos, sampling=DRAW)
    evaluate(delta, photos, base="mine", image_size=16, sampling=DRAW)
    assert asked == [(base.name, None), ("theirs", 8), ("mine", 16)]


def test_the_weights_of_the_base_are_kept_as_asked_else_as_in_the_training(
    base, delta, photos, monkeypatch
):
    asked = []

    def load_base(name, *, base_precision, dtype, **options):
        asked.append(base_precision)
        return base

    monkeypatch.setattr("smidgen.api.evaluation.load_base", load_base)
    for in_training in ("nf4", "fp32"):
        recipe = f'base = "theirs"\nbase_precision = "{in_training}"\n'
        (delta.parent / "recipe.toml").write_text(recipe)
        evaluate(delta.parent, photos, sampling=DRAW)
        evaluate(delta.parent, photos, base_precision="bf16", sampling=DRAW)
        evaluate(delta.parent, photos, base="mine", sampling=DRAW)
        with pytest.raises(UsageError, match="precision is bf16"):  # which this base is not in
            evaluate(delta.parent, photos, sampling=replace(DRAW, precision="bf16"))
    # in bf16 nothing is kept in float32
    assert asked == ["nf4", "bf16", None, "nf4", "fp32", "bf16", None, None]


def test_a_delta_of_another_base_and_wrong_settings_are_refused(base, delta, photos):
    with pytest.raises(SmidgenError, match="made for base"):
        evaluate(delta, photos, base=tiny_base(seed=9), sampling=DRAW)
    with pytest.raises(UsageError, match='sampler is "dppm"'):
        evaluate(delta, photos, base=base, sampling=SamplingConfig(sampler="dppm"))
    with pytest.raises(UsageError, match="numbers draws some of the images, and all are measured"):
        evaluate(delta, photos, base=base, sampling=SamplingConfig(numbers=(1,)))
    with pytest.raises(UsageError, match=r"unknown setting \"batchsize\"; did you mean"):
        evaluate(delta, photos, base=base, batchsize=3)
    with pytest.raises(UsageError, match="no such file or folder"):
        evaluate(delta, photos / "none", base=base)
    with pytest.raises(UsageError, match="holds images"):
        evaluate(photos, photos, sampling=DRAW)


def test_what_there_is_to_evaluate_is_told_by_what_lies_there(delta, photos, tmp_path):
    assert source_kind(delta) == "delta"
    assert source_kind(delta.parent) == "run"
    assert source_kind(photos) == "images"
    np.savez(tmp_path / "samples.npz", arr_0=np.zeros((2, 8, 8, 3), np.uint8))
    assert source_kind(tmp_path / "samples.npz") == "images"
    (photos / "recipe.toml").write_text("")
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    for path, message in (
        (photos, "run without delta"),
        (tmp_path / "one.png", "is no run"),
        (tmp_path / "none", "no such"),
    ):
        with pytest.raises(UsageError, match=message):
            source_kind(path)


def test_each_process_of_several_takes_its_own_accelerator(monkeypatch):
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert own_device("cuda") == "cuda:2"
    assert own_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["negative_prompt", "guidance", "num_images", "seed"])
def test_a_setting_of_sampling_is_refused_with_where_it_is_given(base, delta, photos, name):
    message = rf"{name} is about drawing samples; give sampling=SamplingConfig\({name}=...\)"
    with pytest.raises(UsageError, match=message):
        evaluate(delta, photos, base=base, **{name: 3})


def test_what_has_no_use_is_refused_and_never_dropped(base, delta, photos):
    for setting in (
        {"codec": "c"},
        {"image_size": 8},
        {"frequency_shift": 0.0},
        {"base_precision": "int8"},
    ):
        (name,) = setting
        with pytest.raises(UsageError, match=f"holds images: {name} is for a run or a delta"):
            evaluate(photos, photos, **setting)
        with pytest.raises(UsageError, match=f"{name} is for a base that is loaded here"):
            evaluate(delta, photos, base=base, **setting)


def test_samples_are_drawn_as_many_at_a_time_as_sampling_says(base, delta, photos, monkeypatch):
    drawn = []

    def look(base, config, **options):
        drawn.append(config.batch_size)
        return prepare(base, config, **options)

    monkeypatch.setattr("smidgen.api.evaluation.prepare", look)
    evaluate(delta, photos, base=base, sampling=replace(DRAW, batch_size=3), batch_size=5)
    monkeypatch.setattr("smidgen.api.evaluation.MEASURED_IMAGES", 7)
    evaluate(delta, photos, base=base, batch_size=5)
    assert drawn == [3, 5]


def test_a_base_is_measured_in_its_own_precision_and_in_no_other(base, delta, photos):
    with pytest.raises(UsageError, match="precision is bf16"):
        evaluate(delta, photos, base=base, sampling=replace(DRAW, precision="bf16"))
    found = evaluate(delta, photos, base=base, sampling=DRAW)
    assert found["protocol"]["sampling"]["precision"] == "fp32"
