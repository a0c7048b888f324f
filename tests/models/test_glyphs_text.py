"""The base that ships and reads prompts: what it weighs, what stock diffusers makes of it, and that
it draws the colours and letters that it is asked for.
"""

import itertools
import shutil

import numpy as np
import pytest

import smidgen
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.evaluation.glyph_colours import GROUNDS, INKS, grounds_of, inks_of
from smidgen.models.names import shipped_names

pytestmark = pytest.mark.skipif(
    "glyphs-text" not in shipped_names(), reason="the base glyphs-text is not here"
)
PROMPTS = (
    "a bold serif letter capital a in crimson on cream",
    "an outline picture of an owl in navy on white",
    "a picture of a cat in green on mint",
)
STEPS, GUIDANCE = 25, 4.0


@pytest.fixture(scope="module")
def base():
    return smidgen.load_base("glyphs-text")


def test_it_weighs_little_and_says_what_it_is(base):
    folders = base.source, base.source.parent / "clip-glyphs"
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 24e6
    assert sum(p.numel() for p in base.denoiser.parameters()) == 5_898_596
    assert (base.source / "card.md").exists()


@pytest.fixture(scope="module")
def pipeline(base):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(base.source)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.slow
def test_stock_diffusers_draws_what_smidgen_draws(base, pipeline):
    noise = draw_noise((4, 8, 8), [sample_generator(7, number) for number in range(3)])
    stock = pipeline(
        list(PROMPTS),
        latents=noise,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=32,
        width=32,
    ).images
    ours = smidgen.sample(
        base, prompts=PROMPTS, num_images=3, seed=7, steps=STEPS, guidance=GUIDANCE, sampler="dpm++"
    )
    difference = np.stack([np.asarray(image, int) for image in stock]) - np.stack(
        [np.asarray(image, int) for image in ours]
    )
    assert abs(difference).max() <= 2


def test_all_in_float16_fails_in_stock_diffusers(base, tmp_path):
    """Why the text encoder ships in float32: transformers keeps the precision that it finds."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    folder = shutil.copytree(base.source, tmp_path / "half")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    encoder.half().save_pretrained(folder / "text_encoder")
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.raises(RuntimeError, match="Half"):
        pipeline(PROMPTS[0], num_inference_steps=1, height=32, width=32)


@pytest.mark.slow
def test_it_draws_the_ink_and_the_ground_of_the_prompt(base):
    pairs = list(itertools.product(range(len(INKS)), range(len(GROUNDS))))
    inks, grounds = list(INKS), list(GROUNDS)
    prompts = [
        f"a letter capital {letter} in {inks[ink]} on {grounds[ground]}"
        for letter, (ink, ground) in zip("abcdefghijklmnopqrstuvwx", pairs, strict=True)
    ]
    images = smidgen.sample(
        base, prompts=prompts, num_images=24, steps=STEPS, guidance=GUIDANCE, sampler="dpm++"
    )
    drawn = np.stack([np.asarray(image) for image in images])
    seen = grounds_of(drawn)
    assert (seen == [ground for _, ground in pairs]).mean() >= 0.9
    assert (inks_of(drawn, seen) == [ink for ink, _ in pairs]).mean() >= 0.9
