"""The objective clip-reward: what is seen, what is drawn, and through what gradients flow."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import smidgen
from smidgen.api.planning import plan_run, time_steps
from smidgen.core.delta import Delta
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.features import Extractor, load_extractor
from smidgen.evaluation.similarity import paired_cosine
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.calling import calling
from smidgen.models.labels import labels_of
from smidgen.models.pretrained import load_base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import draw_batch, prepare
from smidgen.training.captions import task_of
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.images import read_latents
from smidgen.training.network import training_network
from smidgen.training.objective import Batch, Task, batch_loss
from smidgen.training.reward import Reward, embed
from smidgen.training.reward_config import RewardConfig
from smidgen.training.reward_targets import rewarded
from smidgen.training.run import fresh_delta
from tests.tiny.bases import tiny_base
from tests.tiny.deltas import trained_tensors
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.weights import moved

PROMPTS = ("a picture of a dog in navy on white", "a picture of an owl in green on cream")
SETTINGS = {
    "objective": "clip-reward",
    "method": "lora",
    "lr": 0.05,
    "steps": 4,
    "batch_size": 2,
    "validation_share": 0.0,
    "trackers": (),
    "progress": False,
    "reward": {"features": "clip-glyphs", "steps": 3, "guidance": 2.0},
}


@pytest.fixture(scope="module")
def clip() -> Extractor:
    return load_extractor("clip-glyphs")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    sd3 = TINY_PIPELINES["sd3"].save(root / "sd3", scheduler={"shift": 3.0})
    return {"sd": TINY_PIPELINES["sd"].save(root / "sd"), "sd3": sd3}


@pytest.fixture
def base(pipelines):
    return load_base(pipelines["sd"])


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join((*PROMPTS, "", PROMPTS[0])))
    return path


def train(base, data, output, **settings):
    return smidgen.train(base, data, output=output, **(SETTINGS | settings))


def seeing(size: int) -> Extractor:
    """A linear stand-in for a CLIP of squares of this size, whose gradients are known."""
    weight = torch.randn(6, 3 * size**2, generator=torch.Generator().manual_seed(2))
    return Extractor(
        name="linear",
        dim=6,
        image_size=size,
        resize="clip",
        sha256="",
        heads={},
        prepare=lambda pixels: torch.from_numpy(pixels.copy()),
        run=lambda pixels: ((pixels / 255 - 0.5).flatten(1) @ weight.T, {}),
    )


def reward_on(base, *, last_steps=1, steps=3, scale=2.0) -> Reward:
    """By DDIM in so many steps, for two labels with fixed targets."""
    targets = torch.randn(2, 6, generator=torch.Generator().manual_seed(4))
    return Reward(
        process=base.process,
        sampling=SamplingConfig(sampler="ddim", steps=steps),
        last_steps=last_steps,
        scale=scale,
        decode=base.codec.decode,
        clip=seeing(base.image_size.width),
        targets=functional.normalize(targets, dim=1),
    )


def batch_of(base) -> Batch:
    noise = torch.randn(2, *base.latent_shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(2)
    empty = torch.zeros_like(noise)
    return Batch(images=labels, latents=empty, noise=noise, timesteps=labels, labels=labels)


def gradients(base, delta, reward, **settings) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The losses of `batch_of`, and the gradients of the trained tensors for their sum."""
    config = TrainingConfig(**settings)
    task = Task(process=base.process, labels=labels_of(base, delta), reward=reward)
    delta.requires_grad_(True).zero_grad()
    reduced = config.precision == "bf16"
    with training_network(base, delta, task, config) as network:
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            losses = batch_loss(network, batch_of(base), task, config, torch.float32)
        losses.sum().backward()
    return losses.detach(), [tensor.grad.clone() for tensor in trained_tensors(delta).values()]


def distance(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Of all gradients together, as a share of their size: a pixel that rounds to its other side
    moves all of them a little.
    """
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (found, expected))
    return float((one - other).norm() / other.norm())


def delta_of(base, method="lora") -> Delta:
    classes = base.class_names[:2]
    delta = build_delta(method, base, configure(method, {}), classes, torch.Generator())
    return moved(delta, 0.3, seed=3)


def test_clip_sees_what_evaluation_sees_of_the_files(clip):
    draw = np.random.default_rng(0)
    for height, width in ((32, 32), (64, 48), (20, 31), (96, 32)):
        coarse = draw.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
        files = [np.asarray(_resized(one, width, height)) for one in coarse]
        expected, _ = clip.read(torch.stack([clip.prepare(one) for one in files]))
        pixels = torch.from_numpy(np.stack(files)).permute(0, 3, 1, 2).float()
        seen = embed(clip, pixels / 127.5 - 1)
        assert paired_cosine(seen, expected).min() > 1 - 1e-4, (height, width)
        assert seen.norm(dim=1).sub(1).abs().max() < 1e-5


def _resized(pixels, width, height):
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_images_are_those_that_sampling_draws(kind, pipelines):
    base = load_base(pipelines[kind])
    sampler = base.process.preview_sampler
    config = SamplingConfig(prompt=PROMPTS, sampler=sampler, steps=3, guidance=2.0, seed=5)
    drawing = prepare(base, config)
    expected = draw_batch(drawing, [0, 1])
    reward = dataclasses.replace(reward_on(base), sampling=drawing.config, last_steps=2)
    network, labels = calling(base.family, base.denoiser), drawing.labels

    def predicted(x, t, shown):
        return base.process.predicted(network(x, t, labels.conditions(shown)), x, t)

    noise = draw_noise(base.latent_shape, [sample_generator(5, number) for number in (0, 1)])
    latents = reward.draw(predicted, torch.tensor([0, 1]), labels.null, noise)
    pixels = ((base.codec.decode(latents.detach()) + 1) * 127.5).round().clamp(0, 255)
    assert torch.equal(pixels.to(torch.uint8), expected)


@pytest.mark.parametrize("last_steps", [1, 2, 3])
def test_gradients_flow_through_the_last_steps_alone(last_steps):
    base = tiny_base()
    delta, reward = delta_of(base), reward_on(base, last_steps=last_steps)
    losses, found = gradients(base, delta, reward, fast=False)
    batch, labels = batch_of(base), torch.tensor([0, 1])
    null = torch.full_like(labels, 2)
    times = base.process.sampled_times("ddim", 3)
    abar = base.process.schedule.alphas_cumprod
    levels = [abar[t].item() for t in times] + [1.0]
    delta.zero_grad()
    x = batch.noise
    with delta.attach(base):
        for step, t in enumerate(times):
            with torch.set_grad_enabled(step >= len(times) - last_steps):
                at = t.expand(2)
                shown = base.denoiser(x, at, labels)[:, :4]
                away = base.denoiser(x, at, null)[:, :4]
                epsilon = away + 2.0 * (shown - away)
                now, then = levels[step], levels[step + 1]
                x0 = (x - (1 - now) ** 0.5 * epsilon) / now**0.5
                x = then**0.5 * x0 + (1 - then) ** 0.5 * epsilon
        pixels = (base.codec.decode(x) + 1) * 127.5
        pixels = pixels + (pixels.round() - pixels).detach()
        features = reward.clip.run(pixels)[0]
        expected = 1 - functional.cosine_similarity(features, reward.targets)
        expected.sum().backward()
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-4, atol=1e-5)
    assert distance(found, [tensor.grad for tensor in trained_tensors(delta).values()]) < 1e-2


@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"fast": True}])
def test_gradients_are_the_same_by_every_way_through_the_network(settings):
    base = tiny_base()
    for method in ("lora", "difffit", "adapter"):
        delta, reward = delta_of(base, method), reward_on(base, last_steps=2)
        _, expected = gradients(base, delta, reward, fast=False)
        _, found = gradients(base, delta, reward, **({"fast": False} | settings))
        assert distance(found, expected) < 1e-2


def test_weights_that_were_cast_without_gradients_do_not_hide_them():
    base = tiny_base()
    reward, noise, labels = reward_on(base, scale=1.0), batch_of(base).noise, torch.tensor([0, 1])
    found = []
    for reduced in (False, True):
        weight = torch.nn.Parameter(0.1 * torch.eye(4).reshape(4, 4, 1, 1))

        def network(x, t, shown, weight=weight):
            return functional.conv2d(x, weight)

        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            reward.losses(network, labels, 2, noise).sum().backward()
        found.append(weight.grad.flatten())
    assert functional.cosine_similarity(*found, dim=0) > 0.95  # bf16 has eight bits


@pytest.mark.slow
def test_a_training_draws_images_that_are_liked_better(base, prompts, tmp_path, clip):
    delta = train(base, prompts, tmp_path / "run", steps=12, ema_decay=0.0)
    plain = {"prompts": list(PROMPTS), "num_images": 16, "steps": 3, "guidance": 2.0}

    def liked(**given) -> float:
        images = smidgen.sample(base, **plain, **given, sampler="dpm++", seed=7)
        pixels = [clip.prepare(np.asarray(image)) for image in images]
        return float(paired_cosine(clip.read(torch.stack(pixels))[0], told).mean())

    told = clip.text(PROMPTS).repeat(8, 1)
    assert liked(delta=delta) > liked() + 0.01


def test_a_resumed_run_is_bit_equal(base, prompts, tmp_path):
    before = {name: tensor.clone() for name, tensor in base.denoiser.state_dict().items()}
    whole = train(base, prompts, tmp_path / "whole")
    train(base, prompts, tmp_path / "parts", steps=2)
    parts = train(base, prompts, tmp_path / "parts")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)
    after = base.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with (tmp_path / "parts" / "log.jsonl").open() as log:
        losses = [json.loads(line).get("loss") for line in log]
    assert all(0 <= loss <= 2 for loss in losses if loss is not None)


def test_the_prompts_are_what_a_run_is_of_and_what_a_delta_says(base, prompts, tmp_path):
    delta = train(base, prompts, tmp_path / "run", steps=1)
    training = delta.provenance.training
    assert training["captions"]["examples"] == list(PROMPTS)
    assert training["settings"]["objective"] == "clip-reward"
    assert training["settings"]["reward"]["last_steps"] == 1
    prompts.write_text(PROMPTS[1])
    with pytest.raises(UsageError, match=r"the images and the captions changed since"):
        train(base, prompts, tmp_path / "run")


def test_a_delta_does_not_name_the_place_of_the_clip(base, prompts, tmp_path):
    reward = RewardConfig(weights=tmp_path)
    training = TrainingConfig(objective="clip-reward", reward=reward, validation_share=0)
    config = RunConfig(data=prompts, output=tmp_path / "run", training=training).resolved()
    delta = fresh_delta(base, config, read_latents(base, config))
    delta.save(tmp_path / "delta.safetensors")
    settings = Delta.load(tmp_path / "delta.safetensors").provenance.training["settings"]
    assert "weights" not in settings["reward"]


@pytest.mark.slow
def test_patience_stops_where_the_held_out_prompts_are_liked_no_better(base, prompts, tmp_path):
    settings = {"validation_share": 0.5, "validate_every": 1, "patience": 2, "lr": 1e-30}
    train(base, prompts, tmp_path / "run", steps=50, **settings)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 3


def test_a_base_that_knows_classes_trains_on_their_pictures(tmp_path, clip):
    base = tiny_base()
    photos = write_photos(tmp_path / "photos")
    settings = {"reward": SETTINGS["reward"] | {"target": "images"}, "batch_size": 4}
    delta = train(base, photos, tmp_path / "run", **settings)
    assert delta.provenance.classes == ("bee", "dog")
    assert all(tensor.isfinite().all() for tensor in delta.parameters())


def test_of_images_the_target_is_their_mean_direction(base, tmp_path, clip):
    photos = write_photos(tmp_path / "photos", per_class=3)
    config = RunConfig(data=photos, output=tmp_path / "run", training=TrainingConfig()).resolved()
    latents = read_latents(base, config)
    delta = fresh_delta(base, config, latents)
    plain = task_of(base, delta, latents, config)
    own = RewardConfig(features="clip-glyphs", target="images", steps=3)
    targets = rewarded(base, delta, own, plain, latents).reward.targets
    for label in (0, 1):
        mean = latents.mean[latents.class_numbers == label, 0]
        pixels = ((base.codec.decode(mean) + 1) * 127.5).round().to(torch.uint8)
        files = [clip.prepare(one.permute(1, 2, 0).numpy()) for one in pixels]
        expected = functional.normalize(clip.read(torch.stack(files))[0], dim=1).mean(dim=0)
        assert functional.cosine_similarity(targets[label], expected, dim=0) > 1 - 1e-4


@pytest.mark.slow
def test_a_dry_run_tells_of_prompts_and_counts_the_passes_that_are_kept(
    base, pipelines, prompts, tmp_path
):
    sizes = []
    for last_steps in (1, 3):
        reward = RewardConfig(features="clip-glyphs", steps=3, last_steps=last_steps, guidance=2.0)
        training = TrainingConfig(
            objective="clip-reward", reward=reward, batch_size=2, steps=9, precision="fp32"
        )
        config = RunConfig(data=prompts, output=tmp_path / "run", method="lora", training=training)
        facts = plan_run(pipelines["sd"], config, given={})
        assert facts["refusal"] is None
        assert facts["images"].lines() == [f"2 prompt(s) from {prompts}, and no images"]
        sizes.append(facts["memory"]["step"])
    assert sizes[1] > 2 * sizes[0]
    assert time_steps(base, config, 0)["seconds_per_step"] > 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "denoising"}, "reward is of objective clip-reward alone"),
        ({"min_snr": 5.0}, "min_snr is of no use to objective clip-reward"),
        ({"label_dropout": 0.1}, "label_dropout is of no use"),
        ({"compile": True}, "compile is of no use"),
        ({"reward": {"steps": 2, "last_steps": 3}}, "reward.last_steps is 3 and reward.steps 2"),
        ({"reward": {"features": "inception"}}, "reward.features is"),
        ({"reward": {"sampler": "ddpm"}}, "reward.sampler is"),
        ({"reward": {"sampler": "euler"}}, "euler does not sample"),
        ({"reward": {"steps": 9999}}, "steps is 9999"),
        ({"reward": {"target": "images"}}, "has prompts alone"),
        ({"reward": {"weights": "nowhere"}}, "no such folder of a CLIP"),
        ({"metrics_every": 1}, "metrics_every compares with images"),
        ({"train_text_encoder": True, "method": "full"}, "texts that are read before"),
        ({"task": "dreambooth", "token": "sks", "class_name": "dog"}, "do not go together"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(settings, message, base, prompts, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(base, prompts, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_what_is_not_there_is_said(base, prompts, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"reads no prompts; give reward\.target"):
        train(tiny_base(), write_photos(tmp_path / "photos"), tmp_path / "run")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SmidgenError, match="clip-vit-base-patch32"):
        train(base, prompts, tmp_path / "run", reward={"steps": 3})
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UsageError, match=r"empty.txt has no prompts; expected one a line"):
        train(base, tmp_path / "empty.txt", tmp_path / "run")
    with pytest.raises(UsageError, match="no such folder of images"):
        train(base, tmp_path / "missing.txt", tmp_path / "run")
