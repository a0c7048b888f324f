"""Every class of pipelines from its folder to images: prompts are encoded, LoRA trains for a step,
images are drawn. The reference is the stock pipeline, loaded from the same folder.
"""

import numpy as np
import pytest
import torch

import smidgen
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.models.pretrained import load_base
from tests.tiny.images import write_photos
from tests.tiny.pipelines import NUM_TIMESTEPS, TINY_PIPELINES

STEPS, SEED = NUM_TIMESTEPS, 7
PROMPTS = ("a red fox", "an owl")
SAME = {"atol": 1e-4, "rtol": 1e-4}  # float32 over several steps, other orders of adding


@pytest.fixture(scope="module", params=TINY_PIPELINES)
def tiny(request):
    return TINY_PIPELINES[request.param]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("pipelines") / "pipeline")


@pytest.fixture(scope="module")
def base(tiny, folder):
    return load_base(folder, image_size=tiny.image_size)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos", per_class=2)


@pytest.fixture
def decoded(tiny, base, monkeypatch):
    """All latents that the autoencoders' class decodes from now on, one an image."""
    import diffusers

    kind, seen = getattr(diffusers, tiny.codec), []
    decode = kind.decode

    def recording(network, z, *arguments, **named):
        seen.extend(z)
        return decode(network, z, *arguments, **named)

    monkeypatch.setattr(kind, "decode", recording)
    return seen


def pictures(images) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).int()


def stock_images(tiny, folder, base) -> torch.Tensor:
    """By diffusers, one prompt at a time, from the noise that smidgen draws."""
    pipeline = tiny.load(folder)
    images = []
    for number, prompt in enumerate(PROMPTS):
        noise = draw_noise(base.latent_shape, [sample_generator(SEED, number)])
        images += pipeline(
            prompt=prompt,
            latents=tiny.latents(pipeline, noise),
            num_inference_steps=STEPS,
            height=base.image_size.height,
            width=base.image_size.width,
            **tiny.call,
        ).images
    return pictures(images)


@pytest.mark.slow
def test_images_and_latents_are_those_of_the_stock_pipeline(tiny, folder, base, decoded):
    assert base.host.family == tiny.family
    expected = stock_images(tiny, folder, base)
    stock = torch.stack(decoded)
    assert len(stock) == len(PROMPTS)
    decoded.clear()
    sampler = "euler" if base.process.name == "flow" else "ddim"
    settings = {"sampler": sampler, "steps": STEPS, "guidance": tiny.guidance, "seed": SEED}
    images = smidgen.sample(base, prompts=PROMPTS, **settings)
    torch.testing.assert_close(torch.stack(decoded[: len(PROMPTS)]), stock, **SAME)
    # rounding to 256 levels of values that differ by float32 alone
    assert (pictures(images) - expected).abs().max() <= 1
    assert len(expected.unique()) > 5

    decoded.clear()
    smidgen.sample(base, prompts="a dog", **settings)
    assert (decoded[0] - stock[0]).abs().max() > 20 * SAME["atol"]  # the prompt is heard


def test_images_that_are_no_squares_are_those_of_the_stock_pipeline(tiny, folder):
    side = tiny.image_size
    base = load_base(folder, image_size=f"{side}x{2 * side}")
    sampler = "euler" if base.process.name == "flow" else "ddim"
    settings = {"sampler": sampler, "steps": STEPS, "guidance": tiny.guidance, "seed": SEED}
    images = smidgen.sample(base, prompts=PROMPTS, **settings)
    assert images[0].size == (side, 2 * side)
    assert (pictures(images) - stock_images(tiny, folder, base)).abs().max() <= 1


@pytest.mark.slow
def test_lora_trains_for_a_step_and_is_drawn_with_the_prompts_of_its_classes(
    tiny, base, photos, tmp_path
):
    delta = smidgen.train(
        base,
        photos,
        method="lora",
        output=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        steps=1,
        lr=1.0,
        batch_size=2,
        validation_share=0.0,
        trackers=(),
        progress=False,
    )
    settings = {"steps": STEPS, "guidance": tiny.guidance, "seed": SEED}
    by_class = smidgen.sample(base, delta=delta, classes="dog", **settings)
    by_prompt = smidgen.sample(base, delta=delta, prompts="a photo of a dog", **settings)
    plain = smidgen.sample(base, prompts="a photo of a dog", **settings)
    assert by_class[0].tobytes() == by_prompt[0].tobytes() != plain[0].tobytes()
