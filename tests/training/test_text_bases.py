"""Training on bases that read prompts: prompts of classes, their losses, and what a delta keeps."""

import json

import pytest
import torch

import smidgen
from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.models.calling import calling
from smidgen.models.labels import Labels, labels_of
from smidgen.models.pretrained import load_base
from smidgen.training.config import TrainingConfig
from smidgen.training.objective import Batch, Task, batch_loss
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES

SHORT = {
    "steps": 2,
    "batch_size": 2,
    "validation_share": 0.2,
    "trackers": (),
    "progress": False,
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {
        "epsilon": load_base(TINY_PIPELINES["sd"].save(root / "sd")),
        "v": load_base(
            TINY_PIPELINES["sd"].save(root / "v", scheduler={"prediction_type": "v_prediction"})
        ),
        "flow": load_base(TINY_PIPELINES["sd3"].save(root / "sd3", scheduler={"shift": 3.0})),
    }


def fixed_batch(base, times) -> Batch:
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, *base.latent_shape, generator=generator)
    labels = torch.tensor([0, 1, 2])
    return Batch(images=labels, latents=x0, noise=noise, timesteps=times, labels=labels)


def task_on(base, prompts=("an ant", "a bee")) -> Task:
    return Task(process=base.process, labels=labels_of(base, prompts=prompts))


def test_noise_and_v_are_learned_from_the_prompts_of_their_labels(bases):
    times = torch.tensor([0, 2, 3])
    for name in ("epsilon", "v"):
        base = bases[name]
        batch = fixed_batch(base, times)
        abar = base.process.schedule.alphas_cumprod[times].float().reshape(-1, 1, 1, 1)
        x_t = abar.sqrt() * batch.latents + (1 - abar).sqrt() * batch.noise
        text = base.conditioner.encode(["an ant", "a bee", ""])["text"]
        output = base.denoiser(x_t, times, encoder_hidden_states=text).sample
        target = batch.noise
        if name == "v":
            target = abar.sqrt() * batch.noise - (1 - abar).sqrt() * batch.latents
        network = calling(base.family, base.denoiser)
        loss = batch_loss(network, batch, task_on(base), TrainingConfig(), torch.float32)
        torch.testing.assert_close(loss, (output - target).square().mean(dim=(1, 2, 3)))


def test_a_flow_learns_the_velocity(bases):
    base = bases["flow"]
    sigma = torch.tensor([0.1, 0.5, 1.0])
    batch = fixed_batch(base, sigma)
    at = sigma.reshape(-1, 1, 1, 1)
    condition = base.conditioner.encode(["an ant", "a bee", ""])
    output = base.denoiser(
        (1 - at) * batch.latents + at * batch.noise,
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
        timestep=1000 * sigma,
    ).sample
    expected = (output - (batch.noise - batch.latents)).square().mean(dim=(1, 2, 3))
    network = calling(base.family, base.denoiser)
    loss = batch_loss(network, batch, task_on(base), TrainingConfig(), torch.float32)
    torch.testing.assert_close(loss, expected)


def test_variance_channels_behind_a_prediction_are_left_out(bases):
    base = bases["epsilon"]
    batch = fixed_batch(base, torch.tensor([1, 2, 3]))
    task = Task(process=base.process, labels=Labels(names=(), conditions=lambda labels: {}))
    plain, wide = (
        batch_loss(
            lambda x, t, condition, width=width: torch.cat([x, 9 * x], 1)[:, :width],
            batch,
            task,
            TrainingConfig(),
            torch.float32,
        )
        for width in (4, 8)
    )
    assert torch.equal(plain, wide)


@pytest.mark.parametrize("name", ["epsilon", "v", "flow"])
def test_folders_of_images_train_by_the_prompts_of_their_names(tmp_path, bases, name, monkeypatch):
    base = bases[name]
    photos = write_photos(tmp_path / "photos")
    before = {key: value.clone() for key, value in base.denoiser.state_dict().items()}
    asked = []
    encode = base.conditioner.encode
    monkeypatch.setattr(
        base.conditioner, "encode", lambda p, *delta: asked.append(tuple(p)) or encode(p, *delta)
    )
    delta = smidgen.train(
        base,
        photos,
        method="lora",
        prompt="art of a {class}",
        output=tmp_path / "run",
        cache_dir=tmp_path / "cache",
        lr=0.05,
        **SHORT,
    )
    assert asked == [("art of a bee", "art of a dog", "")]
    assert delta.provenance.classes == ()
    assert delta.provenance.training["prompts"] == {
        "template": "art of a {class}",
        "classes": ["bee", "dog"],
    }
    after = base.denoiser.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert any("validation_loss" in line for line in lines)

    settings = {"steps": 2, "guidance": 2.0, "seed": 1}
    saved = Delta.load(tmp_path / "run" / "delta.safetensors")
    images = smidgen.sample(base, delta=saved, classes="dog", **settings)
    by_prompt = smidgen.sample(base, delta=saved, prompts="art of a dog", **settings)
    assert images[0].size == (16, 16)
    assert images[0].tobytes() == by_prompt[0].tobytes()
    assert (
        by_prompt[0].tobytes()
        != smidgen.sample(base, prompts="art of a dog", **settings)[0].tobytes()
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"embedded_guidance": 3.5}, "embedded_guidance is of no use"),
        ({"timestep_shift": 2.0}, "timestep_shift is of no use"),
        ({"prompt": "a photo"}, "expected text with {class} in it"),
    ],
)
def test_settings_of_other_bases_are_refused(tmp_path, bases, settings, message):
    photos = write_photos(tmp_path / "photos")
    with pytest.raises(UsageError, match=message):
        smidgen.train(
            bases["epsilon"], photos, output=tmp_path / "run", method="lora", **SHORT | settings
        )
