"""load_base on pipelines of diffusers: what it gives, that images are theirs, what it refuses."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import smidgen
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.errors import SmidgenError, UsageError
from smidgen.models.pretrained import load_base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from tests.tiny.bases import tiny_base
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.text import WORDS

STEPS = 20
PROMPTS = ("a red fox", "a blue fox", "an owl")


def save_sd(folder, **scheduler):
    """Every training step can be a sampling step."""
    options = {"num_train_timesteps": STEPS, **scheduler}
    return TINY_PIPELINES["sd"].save(folder, scheduler=options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sd(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def base(folder):
    return load_base(folder)


def pictures(images) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).int()


def stock_images(folder, guidance: float, negative: str | None = None) -> torch.Tensor:
    """DDIM with eta 0 by diffusers, from the noise that smidgen draws."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    noise = draw_noise((4, 8, 8), [sample_generator(7, number) for number in range(3)])
    return pictures(
        pipeline(
            list(PROMPTS),
            negative_prompt=None if negative is None else [negative] * len(PROMPTS),
            latents=noise,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            eta=0.0,
        ).images
    )


def test_a_pipeline_gives_the_whole_base(base, folder):
    assert base.name == str(folder)
    assert (base.host.family, base.process.prediction) == ("unet", "epsilon")
    assert (base.image_size.plain, base.latent_shape, base.num_classes) == (16, (4, 8, 8), 0)
    assert base.conditioner is not None
    assert not any(p.requires_grad for p in base.denoiser.parameters())
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    roots = torch.linspace(
        scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, STEPS, dtype=torch.float64
    )
    torch.testing.assert_close(base.process.schedule.betas, roots**2)
    assert load_base(folder, image_size=32).latent_shape == (4, 16, 16)


def test_prompts_are_encoded_as_the_pipeline_does_and_once_each(base, folder, monkeypatch):
    from diffusers import StableDiffusionPipeline

    stock = StableDiffusionPipeline.from_pretrained(folder)
    expected, _ = stock.encode_prompt(["a red fox"], "cpu", 1, False)
    found = base.conditioner.encode(["a red fox", "an owl", "a red fox"])["text"]
    assert found.shape == (3, WORDS, 32)
    torch.testing.assert_close(found[:1], expected)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    monkeypatch.setattr(base.conditioner, "_load", lambda: pytest.fail("encoders loaded again"))
    again = base.conditioner.encode(["an owl"])["text"]
    assert torch.equal(again[0], found[1])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_images_are_those_of_the_stock_pipeline(base, folder, guidance):
    expected = stock_images(folder, guidance)
    images = smidgen.sample(
        base, prompts=PROMPTS, sampler="ddim", steps=STEPS, guidance=guidance, seed=7
    )
    # rounding to 256 levels of values that differ by float32 alone
    assert (pictures(images) - expected).abs().max() <= 1
    assert len(expected.unique()) > 20


def test_a_negative_prompt_leads_as_in_the_stock_pipeline(base, folder):
    negative = "blurred, grey"
    settings = {"sampler": "ddim", "steps": STEPS, "guidance": 3.0, "seed": 7}
    images = smidgen.sample(base, prompts=PROMPTS, negative_prompt=negative, **settings)
    assert (pictures(images) - stock_images(folder, 3.0, negative)).abs().max() <= 1
    # random encoders hardly show in pictures: what the null label means is looked at itself
    config = SamplingConfig(prompt=PROMPTS, negative_prompt=negative, **settings)
    drawing = prepare(base, config)
    found = drawing.labels.conditions(torch.tensor([drawing.labels.null]))["text"]
    assert torch.equal(found, base.conditioner.encode([negative])["text"])
    assert not torch.equal(found, base.conditioner.encode([""])["text"])
    assert drawing.facts()["negative_prompt"] == negative


def test_a_negative_prompt_that_would_do_nothing_is_refused(base, tmp_path):
    with pytest.raises(UsageError, match="acts through guidance, which is 1"):
        smidgen.sample(base, prompts="a", negative_prompt="b", guidance=1)
    with pytest.raises(UsageError, match=r'of no use to base "tiny-0".*leave it out'):
        smidgen.sample(tiny_base(), negative_prompt="b")


def test_v_prediction_samples_as_the_stock_pipeline(tmp_path):
    folder = save_sd(tmp_path / "v", prediction_type="v_prediction")
    base = load_base(folder)
    assert base.process.prediction == "v"
    images = smidgen.sample(
        base, prompts=PROMPTS, sampler="ddim", steps=STEPS, guidance=2.0, seed=7
    )
    expected = stock_images(folder, 2.0)
    assert (pictures(images) - expected).abs().max() <= 1
    assert len(expected.unique()) > 20


def test_a_scheduler_that_diffusers_wrote_with_infinity_is_read(tmp_path):
    from diffusers import DPMSolverMultistepScheduler

    folder = save_sd(tmp_path / "sd")
    DPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    assert "-Infinity" in (folder / "scheduler" / "scheduler_config.json").read_text()
    assert load_base(folder).process.schedule.num_steps == 1000


@pytest.mark.parametrize("shift", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_a_flow_samples_as_the_stock_pipeline(tmp_path, shift):
    from diffusers import StableDiffusion3Pipeline

    folder = TINY_PIPELINES["sd3"].save(tmp_path / "sd3", scheduler=shift)
    base = load_base(folder)
    assert (base.process.name, base.image_size.plain, base.process.num_tokens) == ("flow", 16, 16)
    images = smidgen.sample(base, prompts=PROMPTS, steps=4, guidance=2.0, seed=7)
    without = {"text_encoder_3": None, "tokenizer_3": None}
    stock = StableDiffusion3Pipeline.from_pretrained(folder, **without)
    stock.set_progress_bar_config(disable=True)
    noise = draw_noise((4, 8, 8), [sample_generator(7, number) for number in range(3)])
    mu = {}
    if "use_dynamic_shifting" in shift:  # 16 tokens on the line from (256, 0.5) to (4096, 1.15)
        mu = {"mu": 0.5 + (1.15 - 0.5) / (4096 - 256) * (16 - 256)}
    expected = pictures(
        stock(
            list(PROMPTS),
            latents=noise,
            num_inference_steps=4,
            guidance_scale=2.0,
            height=16,
            width=16,
            **mu,
        ).images
    )
    assert (pictures(images) - expected).abs().max() <= 1
    assert len(expected.unique()) > 20
    with pytest.raises(UsageError, match="use euler"):
        smidgen.sample(base, prompts="x", sampler="ddpm")


def test_images_do_not_depend_on_which_other_prompts_there_are(base):
    settings = {"steps": 3, "seed": 1, "guidance": 2.0}
    alone = pictures(smidgen.sample(base, prompts="an owl", **settings))
    among = pictures(smidgen.sample(base, prompts=["an owl", "a red fox"], **settings))
    assert (alone[0] - among[0]).abs().max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "reads prompts"),
        ({"prompts": ()}, "give some"),
        ({"prompts": "a", "sampler": "euler"}, "a diffusion base; use ddpm"),
    ],
)
def test_misuse_of_sample_is_told_at_the_call(base, settings, message):
    with pytest.raises(UsageError, match=message):
        smidgen.sample(base, steps=3, **settings)


def damaged(folder, to, name="model_index.json", **changes):
    shutil.copytree(folder, to)
    config = json.loads((to / name).read_text())
    (to / name).write_text(json.dumps(config | changes))
    return to


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "ShapEPipeline"}, "ShapEPipeline cannot be trained"),
        ("model_index.json", {"unet": ["own_code", "Net"]}, "code of its own"),
        ("model_index.json", {"unet": ["diffusers", "UNet2DModel"]}, "expected UNet2DCondition"),
        ("model_index.json", {"text_encoder": [None, None]}, "has no text_encoder"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            'predicts "sample"; expected epsilon or v_prediction',
        ),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "pure noise"),
        ("unet/config.json", {"in_channels": 9}, "9 latent channels, the codec gives 4"),
        ("vae/config.json", {"block_out_channels": 8}, "array.*block_out_channels"),
        ("vae/config.json", {"scaling_factor": "large"}, "got `str`.*scaling_factor"),
        ("vae/config.json", {"scaling_factor": 0}, "> 0.0.*scaling_factor"),
        ("vae/config.json", {"scaling_factor": None}, "scaling_factor is null"),
        ("vae/config.json", {"shift_factor": 10**30}, "shift_factor"),
        ("vae/config.json", {"block_out_channels": [8] * 100}, "block_out_channels"),
        ("unet/config.json", {"layers_per_block": 10**6}, "'layers_per_block' is 1000000"),
        ("unet/config.json", {"cross_attention_dim": 2**40}, "cross_attention_dim"),
        ("unet/config.json", {"attention_head_dim": {"a": []}}, "no UNet2DConditionModel that"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 2**40}, "timesteps"),
        ("scheduler/scheduler_config.json", {"beta_end": 1}, "beta_end"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, []]}, "trained_betas"),
        ("scheduler/scheduler_config.json", {"beta_schedule": ["linear"]}, "beta_schedule"),
        ("model_index.json", {"unet": [5, {}]}, "has no unet"),
        ("model_index.json", {"_class_name": "a\nb"}, "_class_name"),
    ],
)
def test_what_a_folder_says_is_checked(folder, tmp_path, name, changes, message):
    with pytest.raises(SmidgenError, match=message) as error:
        load_base(damaged(folder, tmp_path / "pipeline", name, **changes))
    assert len(str(error.value).splitlines()) == 1


def test_a_shift_that_is_no_number_is_told_in_a_line(tmp_path):
    folder = TINY_PIPELINES["sd3"].save(tmp_path / "sd3")
    with pytest.raises(SmidgenError, match=r"scheduler_config.json: .*get the file again"):
        load_base(damaged(folder, tmp_path / "bad", "scheduler/scheduler_config.json", shift="x"))


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "conv_in.weight"),
        ("text_encoder/model.safetensors", "final_layer_norm.weight"),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(folder, tmp_path, file, tensor):
    shutil.copytree(folder, tmp_path / "bad")
    tensors = load_file(folder / file)
    key = next(name for name in tensors if name.endswith(tensor))
    tensors[key] = tensors[key].clone()
    tensors[key].view(-1)[-1] = float("nan")
    save_file(tensors, tmp_path / "bad" / file, metadata={"format": "pt"})
    with pytest.raises(
        SmidgenError, match=rf"{file.partition('/')[0]}: not finite .*{tensor}; the"
    ):
        load_base(tmp_path / "bad").conditioner.encode(["a"])


def test_weights_are_checked_before_any_are_loaded(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bin")
    weights = tmp_path / "bin" / "text_encoder" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(SmidgenError, match="only as a pickle"):
        load_base(tmp_path / "bin")
    shutil.copytree(folder, tmp_path / "cut")
    weights = tmp_path / "cut" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SmidgenError, match="get the file again"):
        load_base(tmp_path / "cut")
    shutil.copytree(folder, tmp_path / "variant")
    weights = tmp_path / "variant" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.non_ema.safetensors"))
    with pytest.raises(SmidgenError, match="is a variant"):
        load_base(tmp_path / "variant")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 15}, "multiple of 2"),
        ({"num_classes": 5}, "num_classes is for a DiT"),
        ({"frequency_shift": 1.0}, "frequency_shift is for a DiT"),
    ],
)
def test_settings_that_do_not_fit_are_refused(folder, settings, message):
    with pytest.raises(UsageError, match=message):
        load_base(folder, **settings)
