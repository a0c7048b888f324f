"""Positions of a DiT at another size than its own, through all that is done with a base."""

import tomllib

import pytest
import torch
from PIL import Image

from smidgen import api
from smidgen.api.planning import plan_run
from smidgen.cli import fold, sample
from smidgen.core.delta import Delta
from smidgen.core.file import read_header
from smidgen.errors import UsageError
from smidgen.files.run_files import RECIPE
from smidgen.models.sources import load_codec
from smidgen.sizes import ImageSize
from smidgen.training.config import RunConfig, TrainingConfig
from tests.tiny.codecs import autoencoder
from tests.tiny.images import write_folder
from tests.tiny.networks import DIT, dit
from tests.tiny.own_folder import write_safetensors

SHORT = {"batch_size": 2, "lr": 0.1, "validation_share": 0.0, "trackers": (), "precision": "fp32"}
SIZE = "16x8"  # of a base of 8 pixels
SETTINGS = {"progress": False, "image_size": SIZE, "positions": "stretch", **SHORT}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("base")
    autoencoder(sample_size=8).save_pretrained(root / "vae")
    codec = load_codec(root / "vae")
    write_safetensors(dit(DIT), root / "base", codec=codec, class_names=("ant", "bee", "cat"))
    return root / "base"


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "photos", ("ant", "dog"), per_class=3)


@pytest.fixture
def run(folder, photos, tmp_path):
    api.train(folder, photos, steps=2, output=tmp_path / "run", **SETTINGS)
    return tmp_path / "run"


def outputs(base, delta=None):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(3, *base.latent_shape, generator=generator)
    t, y = torch.tensor([0, 500, 999]), torch.tensor([0, 1, 2])
    if delta is None:
        return base.denoiser(x, t, y)
    with delta.attach(base):
        return base.denoiser(x, t, y)


def test_the_choice_is_part_of_the_run_and_of_the_delta(run, folder, photos, tmp_path):
    assert tomllib.loads((run / RECIPE).read_text())["positions"] == "stretch"
    data = read_header(run / "delta.safetensors")["training"]["data"]
    assert (data["image_size"], data["positions"]) == (SIZE, "stretch")
    with pytest.raises(UsageError, match='positions "stretch" -> "none"'):
        api.train(folder, photos, steps=2, output=run, **SETTINGS | {"positions": None})
    # it goes on where it stopped, to the same bits
    for steps in (1, 2):
        parts = api.train(folder, photos, steps=steps, output=tmp_path / "parts", **SETTINGS)
    whole = Delta.load(run / "delta.safetensors")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    extended = api.train(
        folder, photos, steps=2, output=tmp_path / "other", **SETTINGS | {"positions": "extend"}
    )
    pairs = zip(whole.parameters(), extended.parameters(), strict=True)
    assert not all(torch.equal(one, other) for one, other in pairs)


def test_a_run_from_before_goes_on_with_extended_positions(folder, photos, tmp_path):
    settings = SETTINGS | {"positions": None, "output": tmp_path / "run"}
    api.train(folder, photos, steps=1, **settings)
    recipe = tomllib.loads((tmp_path / "run" / RECIPE).read_text())
    assert "positions" not in recipe  # as recipes were
    for same in (None, "extend"):
        api.train(folder, photos, steps=2, **settings | {"positions": same})
    with pytest.raises(UsageError, match='positions "none" -> "stretch"'):
        api.train(folder, photos, steps=2, **settings | {"positions": "stretch"})


def test_the_dry_run_knows_the_same(run, folder, photos):
    training = TrainingConfig(steps=2, **SHORT)
    config = RunConfig(data=photos, output=run, training=training)
    at = {"image_size": ImageSize.of(SIZE)}
    facts = plan_run(folder, config, given={"positions": "stretch"}, **at)
    assert (facts["run"], facts["refusal"], facts["warning"]) == ("finished", None, None)
    facts = plan_run(folder, config, given={}, **at)
    assert 'positions "stretch" -> "none"' in facts["refusal"]
    assert "extended, not stretched" in facts["warning"]
    with pytest.raises(UsageError, match="positions is for a DiT"):
        plan_run("sd-1.5", config, given={"positions": "stretch"})


def test_images_are_drawn_as_trained_and_other_positions_are_refused(run, folder, tmp_path):
    file = run / "delta.safetensors"
    arguments = ["--base", str(folder), "--delta", str(file), "--num-images", "2", "--steps", "1"]
    sample.run([*arguments, "--output", str(tmp_path / "drawn")])
    base = api.load_base(folder, image_size=SIZE, positions="stretch")
    images = api.sample(base, delta=file, num_images=2, steps=1)
    assert [image.size for image in images] == [(16, 8)] * 2
    written = sorted((tmp_path / "drawn").glob("*.png"))
    assert [image.tobytes() for image in images] == [Image.open(p).tobytes() for p in written]
    other = ["--image-size", SIZE, "--positions", "extend", "--output", str(tmp_path / "other")]
    with pytest.raises(UsageError, match='trained with positions "stretch"'):
        sample.run([*arguments, *other])
    with pytest.raises(UsageError, match='trained with positions "stretch"'):
        api.sample(api.load_base(folder, image_size=SIZE), delta=file, num_images=1, steps=1)


def test_an_evaluation_of_the_run_and_of_its_delta_alone_draws_as_trained(run, photos, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((run / "delta.safetensors").read_bytes())
    sampling = api.SamplingConfig(num_images=2, steps=1)
    one, other = (
        api.evaluate(source, photos, features="glyphs", sampling=sampling)
        for source in (run, alone)
    )
    assert one["metrics"] == other["metrics"]
    assert one["protocol"]["sampling"]["positions"] == "stretch"


def test_a_folded_base_has_the_stretched_positions(run, folder, tmp_path):
    output, file = tmp_path / "folded.pt", run / "delta.safetensors"
    place = ["--delta", str(file), "--format", "dit", "--output", str(output)]
    fold.run(["--base", str(folder), *place])
    base = api.load_base(folder, image_size=SIZE, positions="stretch")
    folded = api.load_base(output, codec=folder)
    assert folded.image_size == base.image_size
    assert torch.equal(folded.denoiser.pos_embed, base.denoiser.pos_embed)
    with torch.no_grad():
        attached = outputs(base, Delta.load(file))
        # folding rounds once
        torch.testing.assert_close(outputs(folded), attached, rtol=1e-4, atol=1e-5)
        other = outputs(api.load_base(output, codec=folder, image_size=SIZE))
        assert torch.equal(other, outputs(folded))


def test_a_run_may_begin_from_a_delta_of_the_own_size_but_not_of_other_positions(
    run, folder, photos, tmp_path
):
    small = api.train(
        folder, photos, steps=1, output=tmp_path / "small", progress=False, **SHORT
    ).provenance.training["data"]
    assert "positions" not in small
    init = tmp_path / "small" / "delta.safetensors"
    api.train(folder, photos, steps=1, init=init, output=tmp_path / "large", **SETTINGS)
    with pytest.raises(UsageError, match='trained with positions "stretch"'):
        api.train(
            folder,
            photos,
            steps=1,
            init=run / "delta.safetensors",
            output=tmp_path / "odd",
            **SETTINGS | {"positions": "extend"},
        )
