"""The shipped base that reads captions is an ordinary Stable Diffusion folder."""

import numpy as np
import pytest
import torch

import smidgen
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.models.pretrained import load_base

PROMPTS = ("a solid picture of an owl in navy on white", "a letter capital a in crimson on cream")
SETTINGS = {"steps": 25, "guidance": 4.0, "seed": 7}


@pytest.fixture(scope="module")
def base():
    return load_base("glyphs-text")


def stock(base, dtype):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base.source, torch_dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_stock_pipeline_draws_the_same_from_the_same_noise(base):
    ours = smidgen.sample(base, prompts=PROMPTS, sampler="dpm++", **SETTINGS)
    noise = draw_noise(base.latent_shape, [sample_generator(7, number) for number in range(2)])
    theirs = stock(base, torch.float32)(
        list(PROMPTS), latents=noise, num_inference_steps=25, guidance_scale=4.0
    ).images
    pictures = [np.stack([np.asarray(one).astype(int) for one in some]) for some in (ours, theirs)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # float32 rounded to 256 levels


def test_text_in_float32_and_the_rest_in_float16_load_as_they_lie_there(base):
    found = stock(base, {"text_encoder": torch.float32, "default": torch.float16})
    kinds = {name: next(getattr(found, name).parameters()).dtype for name in ("unet", "vae")}
    assert kinds == {"unet": torch.float16, "vae": torch.float16}
    assert found.text_encoder.dtype == torch.float32


def test_it_draws_the_ink_and_the_ground_it_is_told(base):
    images = np.stack(smidgen.sample(base, prompts=PROMPTS, sampler="dpm++", **SETTINGS))
    white, cream = (images[number, :2, :2].reshape(-1, 3).mean(0) for number in (0, 1))
    assert white.min() > 240
    assert cream[2] < cream[0] - 8  # less blue than red
    owl, letter = (image.reshape(-1, 3)[image.sum(2).argmin()] for image in images)
    assert owl[2] > owl[0]  # navy
    assert letter[0] > letter[2] + 60  # crimson


def test_it_reads_sixteen_tokens_one_a_word(base):
    files = base.conditioner.files
    assert not files.cut(["a small tilted outline picture of an owl in navy on white"])
    assert files.cut([" ".join(["owl"] * 15)])
