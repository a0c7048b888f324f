"""The verbs on pipelines of diffusers that read prompts: from images to folded weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.diffusion.sampler import draw_noise, sample_generator
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.weights import moved

from .conftest import train_arguments

PROMPTS = ("a red fox", "an owl")
DRAW = {"steps": 4, "guidance": 2.0, "seed": 7}
SIZE = 16
ROUNDING = 1  # of 256 levels, of values that differ by float32 alone


@pytest.fixture(scope="module", params=["sd3", "flux"])
def tiny(request):
    return TINY_PIPELINES[request.param]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("pipelines") / "pipeline")


def pictures(images) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).int()


def stock_images(tiny, pipeline) -> torch.Tensor:
    """By diffusers, from the noise that smidgen draws."""
    shape = (pipeline.vae.config.latent_channels, SIZE // 2, SIZE // 2)
    images = []
    for number, prompt in enumerate(PROMPTS):
        noise = draw_noise(shape, [sample_generator(DRAW["seed"], number)])
        images += pipeline(
            prompt=prompt,
            latents=tiny.latents(pipeline, noise),
            num_inference_steps=DRAW["steps"],
            guidance_scale=DRAW["guidance"],
            height=SIZE,
            width=SIZE,
        ).images
    return pictures(images)


@pytest.fixture
def drawn(smidgen, tmp_path):
    """The images that `smidgen sample` draws of a base."""

    def draw(base, *more) -> torch.Tensor:
        output = tmp_path / f"drawn-{len(list(tmp_path.glob('drawn-*')))}"
        settings = [word for name, v in DRAW.items() for word in (f"--{name}", v)]
        places = ("--base", base, "--image-size", SIZE, "--output", output)
        outcome = smidgen("sample", *places, "--prompt", *PROMPTS, *settings, *more)
        assert outcome.code == 0, outcome.err
        return pictures([Image.open(path) for path in sorted(output.glob("*.png"))])

    return draw


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= ROUNDING


@pytest.fixture(scope="module")
def delta(folder, photos, tmp_path_factory):
    """A trained LoRA, then moved far away by known numbers: a few large steps of training multiply
    the rounding of the processor's kernels, and nothing sure could be said of the pixels.
    """
    run = tmp_path_factory.mktemp("runs") / "run"
    settings = ("--method", "lora", "--image-size", str(SIZE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMIDGEN_CACHE", str(run.parent / "cache"))
        assert main(train_arguments(folder, photos, run, *settings)) == 0
    path = run / "delta.safetensors"
    moved(Delta.load(path), 1.0).save(path)
    return path


@pytest.mark.slow
def test_a_trained_delta_folds_into_what_stock_diffusers_draws(
    smidgen, drawn, tiny, folder, delta, tmp_path
):
    expected = drawn(folder, "--delta", delta)
    assert (expected - drawn(folder)).abs().max() > 5 * ROUNDING, "the delta is seen in the images"
    common = ("fold", "--base", folder, "--delta", delta, "--format")
    out, file = tmp_path / "folded", tmp_path / "folded.safetensors"
    for form, output in (("diffusers", out), ("single-file", file)):
        outcome = smidgen(*common, form, "--output", output)
        assert (outcome.code, outcome.out.splitlines()[-1]) == (0, str(output))
    close(drawn(out), expected)
    close(stock_images(tiny, tiny.load(out)), expected)
    close(stock_images(tiny, tiny.load_file(file, folder)), expected)


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_trained_lora_goes_to_other_programs_and_back(
    smidgen, drawn, tiny, folder, delta, tmp_path, form
):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    common = ("convert", "--base", folder)
    assert smidgen(*common, "--file", delta, "--format", form, "--output", there).code == 0
    assert smidgen(*common, "--file", there, "--format", "delta", "--output", back).code == 0
    expected = drawn(folder, "--delta", delta)
    close(drawn(folder, "--delta", back), expected)
    if form == "peft":
        read = tiny.load(folder)
        read.load_lora_weights(str(there))
        close(stock_images(tiny, read), expected)


def test_a_run_is_measured_with_the_sampler_of_its_base(smidgen, delta, photos, tmp_path):
    draw = ("--num-images", 4, "--steps", 2)
    common = ("evaluate", delta.parent, "--reference", photos, *draw)
    named = smidgen(*common, "--sampler", "euler")
    assert named.code == 0, named.err
    document = json.loads((delta.parent / "result.json").read_text())
    assert document["protocol"]["sampling"]["sampler"] == "euler"
    assert smidgen(*common).code == 0, "no sampler means the base's own"
    other = smidgen(*common, "--sampler", "ddim", "--output", tmp_path / "other.json")
    assert other.code == 2
    assert "ddim does not sample" in other.err
    assert len(other.complaint) == 1


def test_a_dry_run_counts_what_is_then_trained(smidgen, folder, photos, delta, tmp_path):
    arguments = train_arguments(folder, photos, tmp_path / "other", "--method", "lora")
    outcome = smidgen(*arguments, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["num_classes"] is None
    header = smidgen("inspect", delta, "--json").document
    assert outcome.document["trainable"] == header["trainable"]
