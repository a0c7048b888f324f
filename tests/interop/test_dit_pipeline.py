"""A folder for DiTPipeline: 1001 rows of classes, null last, and the same images as ours."""

import dataclasses
import json
import logging

import pytest
import torch

from smidgen.diffusion.schedule import Schedule
from smidgen.errors import SmidgenError
from smidgen.models.dit_weights import read_config, read_dit, write_diffusers
from smidgen.models.pretrained import load_base
from smidgen.models.sources import load_codec
from tests.tiny.codecs import autoencoder
from tests.tiny.networks import DIT, dit

NAMES = ("one", "two, too", "three", "four", "five")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of five classes, everything random, as smidgen writes it."""
    root = tmp_path_factory.mktemp("dit")
    codec = autoencoder()
    codec.save_pretrained(root / "codec")
    model = dit(dataclasses.replace(DIT, num_classes=len(NAMES)))
    notes = write_diffusers(
        model, root / "pipeline", codec=load_codec(root / "codec"), class_names=NAMES
    )
    assert len(notes) == 1
    assert "shift" in notes[0]
    return root / "pipeline"


def test_the_null_row_is_number_1000_and_our_reader_takes_the_padding_off(folder):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert (config["num_embeds_ada_norm"], config["_num_classes"]) == (1000, 5)
    model = dit(dataclasses.replace(DIT, num_classes=len(NAMES)))
    read, state = read_dit(folder)
    assert read == model.config == read_config(folder)
    assert all(torch.equal(state[key], t) for key, t in model.state_dict().items())
    base = load_base(folder)
    assert base.class_names == NAMES
    assert base.null_label == 5


def ddim(base, labels, guidance, steps, generator):
    """DDIM (eta 0) with guidance on all channels of our own network, as images in 0..1."""
    betas = base.process.schedule.betas
    kept = torch.cumprod(1 - betas, 0)
    x = torch.randn(len(labels), 4, 4, 4, generator=generator)
    stride = len(betas) // steps
    for t in reversed(range(0, stride * steps, stride)):
        times = torch.full((len(labels),), t)
        null = torch.full_like(times, base.null_label)
        with torch.no_grad():
            given, free = (base.denoiser(x, times, y)[:, :4] for y in (torch.tensor(labels), null))
        noise = free + guidance * (given - free)
        now = kept[t]
        before = kept[t - stride] if t >= stride else torch.tensor(1.0, dtype=torch.float64)
        start = (x - (1 - now) ** 0.5 * noise) / now**0.5
        x = (before**0.5 * start + (1 - before) ** 0.5 * noise).float()
    with torch.no_grad():
        return ((base.codec.decode(x) + 1) / 2).clamp(0, 1)


def pipeline_images(folder, shift):
    from diffusers import DiTPipeline

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipeline = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if shift is not None:
        for block in pipeline.transformer.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = shift
    return pipeline(
        [3, 0],
        guidance_scale=2.0,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
    ).images


def test_images_equal_ours_after_the_frequency_shift_is_set(folder):
    base = load_base(folder)
    assert base.process.schedule.betas.equal(Schedule.linear().betas)
    expected = ddim(base, [3, 0], 2.0, 4, torch.Generator().manual_seed(7))
    assert expected.std() > 0.01, "the images must not be flat"
    # both run in float32, and the two compute the frequencies in another order
    torch.testing.assert_close(pipeline_images(folder, 0), expected.float(), rtol=0, atol=2e-4)
    shifted = pipeline_images(folder, None)
    assert (shifted - expected).abs().max() > 2e-3, "the shift must show, or nothing was tested"


def test_more_classes_than_the_pipeline_can_count_are_refused(tmp_path):
    codec = autoencoder()
    codec.save_pretrained(tmp_path / "codec")
    many = dit(dataclasses.replace(DIT, num_classes=1001))
    with pytest.raises(SmidgenError, match="1001 classes do not fit DiTPipeline"):
        write_diffusers(many, tmp_path / "out", codec=load_codec(tmp_path / "codec"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("record", [0, 1001, "five"])
def test_a_damaged_record_of_the_padding_is_refused(folder, tmp_path, record):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(
        json.dumps(config | {"_num_classes": record})
    )
    with pytest.raises(SmidgenError, match="_num_classes"):
        read_config(tmp_path)
