"""One file and one line make a family: that of docs/add-a-host.md from its pipeline's folder to
images, by the public functions alone.
"""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import smidgen
from smidgen.core.fold import fold
from smidgen.errors import SmidgenError
from smidgen.hosts.host import HOSTS
from tests.tiny.codecs import autoencoder
from tests.tiny.images import write_photos
from tests.tiny.painter import add_painter
from tests.tiny.text import clip_text, clip_tokenizer
from tests.tiny.weights import lively

TRAINING = {"method": "lora", "method_config": {"targets": ("ff1",)}}
DRAWING = {"sampler": "ddim", "steps": 4, "guidance": 2.0, "seed": 3}


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "hosts").mkdir()
    return add_painter(tmp_path / "hosts", monkeypatch)


@pytest.fixture
def folder(package, tmp_path):
    """What `save_pretrained` of diffusers writes."""
    folder = tmp_path / "pipeline"
    tokenizer = clip_tokenizer(folder / "tokenizer")
    package.PainterPipeline(
        transformer=lively(package.Painter()),
        vae=autoencoder(),
        scheduler=DDIMScheduler(num_train_timesteps=20, clip_sample=False),
        tokenizer=tokenizer,
        text_encoder=clip_text(tokenizer),
    ).save_pretrained(folder)
    return folder


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]).astype(int)


def trained(base, folder):
    """A delta after one step on pictures of a bee and a dog."""
    return smidgen.train(
        base,
        write_photos(folder / "photos", per_class=2),
        **TRAINING,
        output=folder / "run",
        steps=1,
        lr=1.0,
        batch_size=2,
        validation_share=0.0,
        trackers=(),
        progress=False,
    )


def test_the_folder_becomes_a_whole_base(package, folder):
    base = smidgen.load_base(folder)
    assert type(base.denoiser) is package.Painter
    assert (base.host.family, base.process.prediction, base.image_size.plain) == (
        "painter",
        "epsilon",
        16,
    )
    assert base.latent_shape == (4, 8, 8)
    expected = {"text_encoder", "tokenizer", "transformer", "vae", "scheduler"}
    assert expected < set(json.loads((folder / "model_index.json").read_text()))
    condition = base.conditioner.encode(["a red fox", ""])
    assert {name: value.shape for name, value in condition.items()} == {"text": (2, 77, 32)}


def test_inspect_reads_the_configuration_alone_and_counts_the_memory_of_a_step(folder):
    shutil.rmtree(folder / "text_encoder")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    found = smidgen.inspect(folder, **TRAINING, batch_size=3)
    # two layers, each of 8 to 8 channels, and rank 8: an up and a down
    assert (found["host"], found["trainable"]) == ("painter", 2 * 2 * 8 * 8)
    assert found["total"] == (4 * 8 + 8) + (32 * 8 + 8) + 2 * (8 * 8 + 8) + (8 * 4 + 4)
    assert found["memory"]["step"] > 3 * 77 * 32 * 4  # the text of three images among it


def test_it_is_trained_drawn_and_folded(folder, tmp_path):
    base = smidgen.load_base(folder)
    delta = trained(base, tmp_path)
    prompts = ("a photo of a bee", "a photo of a dog")
    plain = pixels(smidgen.sample(base, prompts=prompts, **DRAWING))
    changed = pixels(smidgen.sample(base, delta=delta, prompts=prompts, **DRAWING))
    by_class = pixels(smidgen.sample(base, delta=delta, classes=("bee", "dog"), **DRAWING))
    assert (changed == by_class).all()
    assert (changed != plain).any()
    other = pixels(smidgen.sample(base, prompts=("an owl", "an owl"), **DRAWING))
    assert (other != plain).any(), "the prompt is heard"

    output = smidgen.fold(base, delta, format="diffusers", output=tmp_path / "folded")
    folded = smidgen.load_base(output)
    expected = fold(delta, base.denoiser.state_dict(), base.host.folds)
    for name, tensor in folded.denoiser.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])
    drawn = pixels(smidgen.sample(folded, prompts=prompts, **DRAWING))
    assert abs(drawn - changed).max() <= 1  # rounding to 256 levels


def test_without_its_line_nothing_of_the_package_is_run(package, folder, monkeypatch):
    monkeypatch.delitem(HOSTS, "painter_package.Painter")
    monkeypatch.delattr(package, "Painter")  # nobody may ask for it
    with pytest.raises(SmidgenError, match="transformer is of painter_package, code of its own"):
        smidgen.load_base(folder)


def test_a_package_that_is_not_there_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "painter_package", None)
    with pytest.raises(SmidgenError, match="a Painter needs painter_package, which cannot be"):
        smidgen.load_base(folder)


def test_what_only_an_original_code_has_is_refused_by_name(folder, tmp_path):
    base = smidgen.load_base(folder)
    delta = trained(base, tmp_path)
    expected = "no original names for a Painter: .* for SD 1.x, 2.x, SDXL, SD3 and Flux;"
    with pytest.raises(SmidgenError, match=expected):
        smidgen.fold(base, delta, format="single-file", output=tmp_path / "one.safetensors")
