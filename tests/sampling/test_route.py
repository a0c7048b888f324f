"""Images that begin from a picture, against stock diffusers and the equations written out."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import (
    pipeline_stable_diffusion_img2img as changing,
)
from diffusers.pipelines.stable_diffusion import (
    pipeline_stable_diffusion_inpaint as inpainting,
)
from diffusers.pipelines.stable_diffusion_3 import (
    pipeline_stable_diffusion_3_img2img as changing_flow,
)
from PIL import Image

import smidgen
from smidgen.diffusion.replacement import low_frequencies
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.errors import UsageError
from smidgen.models.pretrained import load_base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from tests.tiny.bases import NEW_CLASSES, tiny_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.images import write_image
from tests.tiny.pipelines import TINY_PIPELINES

PROMPTS = ("a red fox", "a blue fox", "an owl")
TRAINED, SEED = 10, 7  # steps of the process
ROUNDING = 1  # of 256 levels, of values that differ by float32 alone


def half_mask(side):
    """Drawn anew on the right."""
    mask = np.zeros((side, side), dtype=np.uint8)
    mask[:, side // 2 :] = 255
    return Image.fromarray(mask)


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "sd"
    TINY_PIPELINES["sd"].save(folder, scheduler={"num_train_timesteps": TRAINED})
    return folder, load_base(folder)


@pytest.fixture
def files(tmp_path):
    """A picture and a mask of 16 x 16 pixels."""
    half_mask(16).save(tmp_path / "mask.png")
    return write_image(tmp_path / "picture.png"), tmp_path / "mask.png"


def levels(images):
    return np.stack([np.asarray(image) for image in images]).astype(int)


def noise_of(base, count=3):
    return draw_noise(
        base.latent_shape, [sample_generator(SEED, number) for number in range(count)]
    )


def as_we_draw(monkeypatch, module, base):
    """The pipelines of a module begin from our noise, and from the mean of the codec's posterior
    where they would draw from it.
    """
    retrieve = module.retrieve_latents
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: noise_of(base))
    monkeypatch.setattr(
        module,
        "retrieve_latents",
        lambda output, generator=None: retrieve(output, generator, sample_mode="argmax"),
    )


def stock(kind, folder, sampler="ddim"):
    """A pipeline with the scheduler of our sampler."""
    from diffusers import DPMSolverMultistepScheduler

    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if sampler == "dpm++":
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="linspace", solver_order=2
        )
    return pipeline


# DDIM of diffusers has our steps where all of the process are walked, DPM++ always
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", TRAINED), ("dpm++", 6)])
@pytest.mark.parametrize(("strength", "guidance"), [(0.6, 3.0), (1.0, 1.0)])
def test_a_changed_picture_is_that_of_the_stock_pipeline_with_the_delta(
    sd, files, monkeypatch, sampler, steps, strength, guidance
):
    folder, base = sd
    delta = tiny_delta(base, "difffit", (), std=0.1)
    as_we_draw(monkeypatch, changing, base)
    pipeline = stock(changing.StableDiffusionImg2ImgPipeline, folder, sampler)
    with delta.attach(pipeline.unet):
        expected = levels(
            pipeline(
                list(PROMPTS),
                image=[Image.open(files[0])] * len(PROMPTS),
                strength=strength,
                num_inference_steps=steps,
                guidance_scale=guidance,
            ).images
        )
    settings = {"steps": steps, "sampler": sampler, "guidance": guidance, "seed": SEED}
    given = {"prompts": PROMPTS, "image": files[0], "image_strength": strength}
    found = levels(smidgen.sample(base, delta=delta, **given, **settings))
    assert np.abs(found - expected).max() <= ROUNDING
    without = levels(smidgen.sample(base, **given, **settings))
    assert np.abs(found - without).max() > 5 * ROUNDING


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(("sampler", "steps"), [("ddim", TRAINED), ("dpm++", 6)])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_an_inpainted_picture_is_that_of_the_stock_pipeline_with_the_delta(
    sd, files, monkeypatch, sampler, steps, strength
):
    folder, base = sd
    delta = tiny_delta(base, "difffit", (), std=0.1)
    as_we_draw(monkeypatch, inpainting, base)
    pipeline = stock(inpainting.StableDiffusionInpaintPipeline, folder, sampler)
    with delta.attach(pipeline.unet):
        expected = levels(
            pipeline(
                list(PROMPTS),
                image=Image.open(files[0]),
                mask_image=Image.open(files[1]),
                height=16,
                width=16,
                strength=strength,
                num_inference_steps=steps,
                guidance_scale=3.0,
            ).images
        )
    settings = {"steps": steps, "sampler": sampler, "guidance": 3.0, "seed": SEED}
    given = {"prompts": PROMPTS, "image": files[0], "mask": files[1], "image_strength": strength}
    found = levels(smidgen.sample(base, delta=delta, restore="inpaint", **given, **settings))
    assert np.abs(found - expected).max() <= ROUNDING
    assert np.abs(found - levels(smidgen.sample(base, **given, **settings))).max() > 5 * ROUNDING


def test_a_picture_changed_by_a_flow_is_that_of_the_stock_pipeline(tmp_path, files, monkeypatch):
    folder = TINY_PIPELINES["sd3"].save(tmp_path / "sd3", scheduler={"shift": 3.0})
    base = load_base(tmp_path / "sd3")
    as_we_draw(monkeypatch, changing_flow, base)
    without = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = changing_flow.StableDiffusion3Img2ImgPipeline.from_pretrained(folder, **without)
    pipeline.set_progress_bar_config(disable=True)
    how = {"image": Image.open(files[0]), "strength": 0.75, "height": 16, "width": 16}
    images = pipeline(list(PROMPTS), num_inference_steps=4, guidance_scale=2.0, **how).images
    given = {"image": files[0], "image_strength": 0.75, "steps": 4, "guidance": 2.0}
    found = levels(smidgen.sample(base, prompts=PROMPTS, seed=SEED, **given))
    assert np.abs(found - levels(images)).max() <= ROUNDING
    assert len(np.unique(found)) > 20


# a class base
BASE = tiny_base()
SETTINGS = {"steps": 6, "seed": SEED, "guidance": 2.0}


@pytest.fixture
def small(tmp_path):
    """A picture and a mask of the size of a class base, 8 x 8, and a picture of 4 x 4."""
    write_image(tmp_path / "picture.png", width=8, height=8)
    write_image(tmp_path / "coarse.png", width=4, height=4)
    half_mask(8).save(tmp_path / "mask.png")
    return tmp_path


def latents_of(base, image):
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None].float()
    return base.codec.encode(pixels / 127.5 - 1)[0]


def drawn_latents(base, monkeypatch, **settings):
    """Of what `sample` draws, as they come to the codec."""
    seen = []
    decode = base.codec.decode
    monkeypatch.setattr(base.codec, "decode", lambda x: seen.append(x) or decode(x))
    smidgen.sample(base, **SETTINGS, **settings)
    return torch.cat(seen)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_what_the_mask_keeps_is_the_pictures_own(small, monkeypatch, sampler):
    given = {"image": small / "picture.png", "mask": small / "mask.png", "sampler": sampler}
    found = drawn_latents(BASE, monkeypatch, **given)
    known = latents_of(BASE, Image.open(small / "picture.png")).expand_as(found)
    half = found.shape[-1] // 2
    torch.testing.assert_close(found[..., :half], known[..., :half])
    assert (found[..., half:] - known[..., half:]).abs().min(dim=0).values.max() > 0.1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++"])
def test_an_enlarged_picture_keeps_the_coarse_parts_of_the_small_one(small, monkeypatch, sampler):
    given = {"image": small / "coarse.png", "restore": "upscale", "sampler": sampler}
    found = drawn_latents(BASE, monkeypatch, **given)
    enlarged = Image.open(small / "coarse.png").resize((8, 8), Image.Resampling.BICUBIC)
    known = latents_of(BASE, enlarged).expand_as(found)
    # the latents of random networks are large, and their means are those of float32
    close = {"rtol": 1e-4, "atol": 1e-5 * float(found.abs().max())}
    torch.testing.assert_close(low_frequencies(found, 2), low_frequencies(known, 2), **close)
    assert (found - known).abs().max() > 0.1


def test_a_noisy_picture_is_drawn_on_from_the_noise_that_it_has(small):
    base, level, schedule = tiny_base(), 0.2, BASE.process.schedule
    config = SamplingConfig(
        image=small / "picture.png", restore="denoise", noise_level=level, sampler="ddim"
    )
    route = prepare(base, config).route
    # BoxCodec averages squares of pixels, and so white noise over its factor is left; in grey, the
    # mean of three channels, less
    first = int(route.times()[0])
    ratio = float(((1 - schedule.alphas_cumprod) / schedule.alphas_cumprod).sqrt()[first])
    assert 0.5 * 2 * level / base.codec.factor < ratio < 2 * 2 * level / base.codec.factor
    seen = []

    def denoise(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    noise = noise_of(base, 1)
    route.sample(denoise, noise, [sample_generator(SEED, 0)])
    x, t = seen[0]
    expected = schedule.alphas_cumprod[first].sqrt() * latents_of(
        base, Image.open(small / "picture.png")
    )
    torch.testing.assert_close(x, expected.float())
    assert int(t[0]) == first
    assert len(seen) == min(config.steps, first + 1)


def test_a_delta_changes_and_restores_with_its_own_classes(small):
    delta = tiny_delta(BASE, "difffit", std=0.1)
    given = {"image": small / "picture.png", "mask": small / "mask.png"}
    found = levels(smidgen.sample(BASE, delta=delta, **given, **SETTINGS))
    assert len(found) == len(NEW_CLASSES)
    assert np.abs(found - levels(smidgen.sample(BASE, delta=delta, **SETTINGS))).max() > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_strength": 0.5}, "image_strength is about the image that is changed"),
        ({"mask": "mask.png"}, "mask is about the image"),
        ({"restore": "denoise"}, "restore is about the image"),
        ({"image": "picture.png", "image_strength": 0.0}, "image_strength is 0.0"),
        ({"image": "picture.png", "image_strength": 1.5}, "image_strength is 1.5"),
        ({"image": "picture.png", "image_strength": 0.01}, "of 6 steps is not one step"),
        ({"image": "picture.png", "restore": "denoise"}, "noise_level is that of the image"),
        ({"image": "picture.png", "noise_level": 0.1}, "noise_level is that of the image"),
        (
            {
                "image": "picture.png",
                "restore": "denoise",
                "noise_level": 0.1,
                "image_strength": 0.5,
            },
            "starts at noise_level",
        ),
        ({"image": "picture.png", "restore": "inpaint"}, "restore inpaint needs mask"),
        (
            {"image": "coarse.png", "restore": "upscale", "mask": "mask.png"},
            "mask is of no use to restore upscale",
        ),
        ({"image": "picture.png", "restore": "upscale"}, "no whole part of the base's 8 x 8"),
        ({"image": "gone.png"}, r"image .*gone.png cannot be used: unreadable"),
        ({"image": "words.txt"}, r"image .*words.txt cannot be used: .*not an image"),
        ({"image": "picture.png", "mask": "words.txt"}, r"mask .*words.txt cannot be used"),
        (
            {"image": "picture.png", "mask": "coarse.png"},
            r"mask .* has 4 x 4 pixels and image .* 8 x 8",
        ),
        ({"image": "picture.png", "mask": "black.png"}, "mask keeps all of the image"),
        ({"image": "picture.png", "mask": "white.png"}, "mask keeps nothing of the image"),
    ],
)
def test_what_cannot_be_drawn_from_a_picture_is_refused_by_name(small, settings, message):
    (small / "words.txt").write_text("no picture")
    for name, level in {"black": 0, "white": 255}.items():
        Image.new("L", (8, 8), level).save(small / f"{name}.png")
    given = {
        name: small / value if name in ("image", "mask") else value
        for name, value in settings.items()
    }
    with pytest.raises(UsageError, match=message) as caught:
        smidgen.sample(BASE, **(SETTINGS | given))
    assert "\n" not in str(caught.value)
