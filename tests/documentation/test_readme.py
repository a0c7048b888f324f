"""The README's Python is run as it stands, on a small folder and for a few steps."""

import shutil

import pytest

import smidgen
from smidgen.data.embedded_sets import unpack
from tests.documentation.pages import blocks_of

BLOCKS = [block.text for block in blocks_of("README.md") if block.language == "python"]


@pytest.fixture
def photos(folder, small_sets):
    """A folder photos/ of two classes in the working folder."""
    greek = unpack("greek", folder / "greek")
    for name in ("alpha", "beta"):
        files = sorted((greek / "train" / name).iterdir())[:8]
        (folder / "photos" / name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder / "photos" / name)


@pytest.mark.usefixtures("photos")
def test_the_readme_trains_samples_saves_and_attaches(monkeypatch):
    train, sample = smidgen.train, smidgen.sample
    short = {"steps": 2, "batch_size": 8, "trackers": (), "progress": False}
    monkeypatch.setattr(smidgen, "train", lambda *args, **given: train(*args, **(given | short)))
    monkeypatch.setattr(smidgen, "sample", lambda *args, **given: sample(*args, steps=2, **given))
    space = {}
    exec(BLOCKS[0], space)
    assert len(space["images"]) == 16
    assert {image.size for image in space["images"]} == {(32, 32)}
    saved = smidgen.Delta.load("photos.safetensors")
    assert saved.provenance.classes == ("alpha", "beta")

    import torch

    base = space["base"]
    space |= {
        "x": torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "t": torch.tensor([10, 500, 900]),
        "y": torch.tensor([0, 1, 2]),
    }
    with torch.no_grad():
        exec(BLOCKS[1], space)
        plain = base.denoiser(space["x"], space["t"], space["y"])
    assert space["output"].shape == plain.shape
    assert not torch.equal(space["output"], plain)
