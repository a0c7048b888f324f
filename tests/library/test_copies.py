"""Copies of training pictures: their statistic, and a delta that learned four letters by heart."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist

import smidgen
from smidgen.core.delta import Delta
from smidgen.data.embedded_sets import load_set
from smidgen.data.folder import scan
from smidgen.errors import SmidgenError
from smidgen.evaluation.neighbours import scale_of
from smidgen.evaluation.statistics import Statistics
from smidgen.library.config import CopiesConfig
from smidgen.library.copies import check_pictures, with_pictures
from smidgen.library.sheet import Pair, sheet_of
from smidgen.sampling.config import SamplingConfig
from tests.library.results import write_run
from tests.tiny.images import write_photos


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


def points(count, dim, seed):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("count", "k"), [(30, 1), (250, 2)])
def test_the_scale_is_a_quantile_of_the_distances_to_the_nearest_other(count, k):
    real, fake = points(count, 4, 0), points(40, 4, 1)
    own = cdist(real.double(), real.double())
    np.fill_diagonal(own, np.inf)
    scale = scale_of(real, block=64)
    assert scale.distance == pytest.approx(np.sort(own.min(axis=1))[k - 1])
    assert scale.by_chance == (k + 1) / (count + 1)
    between = cdist(fake.double(), real.double())
    distances, places, near = scale.nearest(fake)
    assert distances.numpy() == pytest.approx(between.min(axis=1))
    assert (places.numpy() == between.argmin(axis=1)).all()
    assert (near.numpy() == (between.min(axis=1) < scale.distance)).all()


@pytest.mark.slow
def test_other_real_vectors_count_as_copies_as_often_as_chance_says():
    """Of five points that are alike, each is one of the nearest pair in 2 of 5 cases."""
    trials, real = 2000, 4
    hits = sum(
        bool(scale_of(found[:real]).nearest(found[real:])[2])
        for found in points(trials * (real + 1), 3, 5).reshape(trials, real + 1, 3)
    )
    chance = 2 / (real + 1)
    spread = (chance * (1 - chance) / trials) ** 0.5
    assert abs(hits / trials - chance) < 4 * spread
    assert scale_of(points(real, 3, 0)).by_chance == chance


def test_copies_are_found_and_pictures_that_are_there_twice_do_not_hide_them():
    real = points(50, 6, 0)
    twice = torch.cat([real, real[:5]])
    noise = 1e-3 * points(20, 6, 2)
    for known in (real, twice):
        scale = scale_of(known)
        assert scale.distance > 0.1
        assert scale.nearest(real[:20] + noise)[2].all()
        assert scale.nearest(points(200, 6, 3))[2].float().mean() < 0.2
    with pytest.raises(ValueError, match="not two differ"):
        scale_of(real[:1].repeat(4, 1))


def write_letters(folder, count):
    """So many pictures of one letter, in different fonts and colours."""
    greek = load_set("greek")
    places = np.flatnonzero(greek.label == greek.class_names.index("alpha"))
    folder.mkdir()
    for number, pixels in enumerate(greek.images(places[:: len(places) // count][:count])):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
def test_a_delta_that_learned_four_letters_by_heart_is_refused_and_a_sound_one_passes(tmp_path):
    base = smidgen.load_base("glyphs")
    shared = {"batch_size": 4, "trackers": (), "progress": False}
    few, many = write_letters(tmp_path / "few", 4), write_letters(tmp_path / "many", 40)
    drawing = SamplingConfig(num_images=24, steps=10, sampler="dpm++")
    learned = {"method": "full", "lr": 1e-3, "label_dropout": 0.0, "validation_share": 0.0}
    smidgen.train(base, few, output=tmp_path / "runs" / "over", steps=160, **shared, **learned)
    smidgen.train(base, many, output=tmp_path / "runs" / "sound", steps=25, **shared)
    found = smidgen.gate(tmp_path / "runs", most_copied=0.45, base=base, sampling=drawing)
    over, sound = found["over"], found["sound"]
    assert (over["passed"], sound["passed"]) == (False, True)
    assert over["copies"]["share_low"] > over["copies"]["by_chance"]  # beyond what chance explains
    assert sound["copies"]["share_high"] < 0.45
    assert "are as near to a training picture as copies are" in over["reasons"][0]
    assert over["copies"]["protocol"]["sampling"]["steps"] == 10
    for name in found:
        with Image.open(tmp_path / "runs" / name / "copies.png") as sheet:
            assert sheet.width > sheet.height > 96
    # a share that real pictures would reach says nothing
    again = smidgen.gate(tmp_path / "runs" / "over", most_copied=0.3, base=base, sampling=drawing)
    assert "about 40.0% of other real ones would count" in again["over"]["reasons"][0]


def test_the_pictures_are_those_that_it_was_trained_on(tmp_path):
    path = write_run(tmp_path / "run")
    with pytest.raises(SmidgenError, match=r"no recipe\.toml beside"):
        with_pictures(CopiesConfig(), path)
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(f'data = "{tmp_path / "gone"}"\nlayout = "folder"\nsplit = "none"\n')
    with pytest.raises(SmidgenError, match="are not there; give data"):
        with_pictures(CopiesConfig(), path)
    photos = write_photos(tmp_path / "photos")
    recipe.write_text(f'data = "{photos}"\nlayout = "folder"\nsplit = "none"\n')
    found = with_pictures(CopiesConfig(), path)
    assert (found.data, found.layout, found.split) == (photos, "folder", None)
    assert with_pictures(CopiesConfig(data=tmp_path), path).data == tmp_path


def test_other_pictures_and_single_ones_are_told(tmp_path):
    delta = Delta.load(write_run(tmp_path))
    training = {**delta.provenance.training, "data": {"images": 4}}
    delta.provenance = dataclasses.replace(delta.provenance, training=training)

    def known(*labels):
        gaussian = type("Gaussian", (), {"count": len(labels)})()
        values = {"classes": ("a", "b"), "class_numbers": torch.tensor(labels)}
        found = object.__new__(Statistics)
        for name, value in {**values, "gaussian": gaussian}.items():
            object.__setattr__(found, name, value)
        return found

    check_pictures(delta, known(0, 0, 1, 1), tmp_path)
    with pytest.raises(SmidgenError, match="has 3 pictures and the delta was trained on 4"):
        check_pictures(delta, known(0, 0, 1), tmp_path)
    with pytest.raises(SmidgenError, match='of class "b" there is one training picture'):
        check_pictures(delta, known(0, 0, 0, 1), tmp_path)


def test_the_nearest_pair_comes_first_on_the_sheet(tmp_path):
    pictures = scan(write_photos(tmp_path / "photos", ("a",), per_class=3))
    white, black = (np.full((32, 32, 3), value, np.uint8) for value in (255, 0))
    pairs = [Pair(drawn=white, picture=1, distance=2.0), Pair(drawn=black, picture=2, distance=1.0)]
    sheet = np.asarray(sheet_of(pairs, pictures))
    assert (sheet[8:104, 8:104] == 0).all()
    assert (sheet[8:104, 208:304] == 255).all()
    with Image.open(pictures.files[2].path) as picture:
        shown = picture.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)
    beside = sheet[8:104:3, 104:200:3]
    assert (beside == np.asarray(shown)).all()


def test_a_delta_of_captions_draws_those_of_its_pictures(tmp_path):
    base = smidgen.load_base("glyphs-text")
    photos = write_letters(tmp_path / "photos", 8)
    for path in photos.iterdir():
        path.with_suffix(".txt").write_text(f"a letter {path.stem}")
    settings = {"method": "bitfit", "steps": 1, "batch_size": 2, "validation_share": 0.0}
    run = tmp_path / "run"
    smidgen.train(base, photos, output=run, trackers=(), progress=False, **settings)
    drawing = SamplingConfig(num_images=3, steps=1, guidance=1.0)
    found = smidgen.gate(run, most_copied=0.9, base=base, sampling=drawing)["run"]["copies"]
    assert found["num_pictures"] == 8
    assert found["num_images"] == 3
    assert found["protocol"]["features"] == "clip-glyphs"
    assert found["protocol"]["sampling"]["prompt"] == "3 captions of the training pictures"
