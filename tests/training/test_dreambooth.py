"""Personalisation: the loss, what a run promises, and what its delta says."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

import smidgen
from smidgen.api.planning import plan_run, time_steps
from smidgen.core.delta import Delta
from smidgen.diffusion.objective import drop_labels
from smidgen.errors import SmidgenError, UsageError
from smidgen.models.labels import labels_of
from smidgen.models.pretrained import load_base
from smidgen.training import class_images, previews
from smidgen.training.buckets import BucketOrder
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.images import read_latents
from smidgen.training.randomness import Shuffle, Streams
from smidgen.training.subject import class_prompts
from tests.launch import finish, start
from tests.tiny.bases import tiny_base
from tests.tiny.deltas import trained_tensors
from tests.tiny.images import write_folder, write_image
from tests.tiny.pipelines import TINY_PIPELINES

OWL = {"task": "dreambooth", "token": "sks", "class_name": "owl", "class_images": 5}
SETTINGS = {
    "method": "lora",
    "batch_size": 2,
    "lr": 0.05,
    "steps": 3,
    "trackers": (),
    "progress": False,
}
FAMILIES = {
    "sd1": ("sd", {}),
    "sd2": ("sd", {"prediction_type": "v_prediction"}),
    "sdxl": ("sdxl", {}),
    "sd3": ("sd3", {}),
    "flux": ("flux", {}),
}
TWO_AT_A_TIME = 2 * 16**2  # pixels
TWO = """
import sys
from smidgen.training import class_images
from tests.training.test_dreambooth import TWO_AT_A_TIME, train_alone
class_images.PIXELS = TWO_AT_A_TIME
train_alone(*sys.argv[1:], batch_size=1)
"""


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def base(pipeline):
    return load_base(pipeline)


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        write_image(tmp_path / "photos" / f"{number}.png", seed=number)
    return tmp_path / "photos"


def train(base, photos, output, **settings) -> Delta:
    given = {"cache_dir": photos.parent / "cache"} | OWL | SETTINGS | settings
    if given.get("class_data") or given.get("prior_weight") == 0:
        given.pop("class_images")
    return smidgen.train(base, photos, output=output, **given)


def train_alone(pipeline, photos, output, cache, batch_size):
    """A run as a user starts it, in a process of its own."""
    settings = {"batch_size": batch_size, "steps": 4, "lr": 1e-3, "flip": True, "method": "adapter"}
    smidgen.train(
        load_base(pipeline), photos, output=output, cache_dir=cache, **OWL | SETTINGS | settings
    )


def config(photos, **settings) -> RunConfig:
    training = TrainingConfig(batch_size=2, **settings.pop("training", {}))
    places = {"data": photos, "output": photos.parent / "run", "cache_dir": photos.parent / "cache"}
    return RunConfig(**places | OWL | settings, training=training).resolved()


def read_log(output):
    return [json.loads(line) for line in (output / "log.jsonl").open()]


def test_the_loss_is_that_of_the_subject_and_weighted_that_of_its_class(base, photos, tmp_path):
    train(base, photos, tmp_path / "run", steps=1, prior_weight=0.25)
    latents = read_latents(base, config(photos))
    assert len(latents) == 4 + 5
    order, others = BucketOrder([torch.arange(4)], 0), Shuffle(torch.arange(4, 9), 0, "class order")
    (s1, s2), (c1, c2) = order.take(2).tolist(), others.take(2).tolist()
    rows, streams = [s1, c1, s2, c2], Streams(0)
    x0, _ = latents.draw(rows, streams.latents)
    drop_labels(torch.zeros(4, dtype=torch.long), 1, 0.0, streams.labels)
    t = torch.randint(4, (4,), generator=streams.timesteps)
    noise = torch.randn(x0.shape, generator=streams.noise)
    prompts = ["a photo of sks owl", "a photo of a owl"] * 2
    text = base.conditioner.encode(prompts)["text"]
    abar = base.process.schedule.alphas_cumprod[t].float().reshape(-1, 1, 1, 1)
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
    with torch.no_grad():
        output = base.denoiser(x_t, t, encoder_hidden_states=text).sample
    each = (output - noise).square().mean(dim=(1, 2, 3))
    expected = (each[0] + each[2]) / 2 + 0.25 * (each[1] + each[3]) / 2
    (line,) = [line for line in read_log(tmp_path / "run") if "loss" in line]
    assert line["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_resumed_run_is_bit_equal_and_the_base_is_as_it_was(base, photos, tmp_path):
    before = {name: value.clone() for name, value in base.denoiser.state_dict().items()}
    settings = {"steps": 4, "checkpoint_every": 2, "label_dropout": 0.3, "flip": True}
    settings |= {"gradient_accumulation": 2}
    train(base, photos, tmp_path / "whole", **settings)
    train(base, photos, tmp_path / "two", **settings | {"steps": 2})
    train(base, photos, tmp_path / "two", **settings)
    whole, two = (tmp_path / name / "delta.safetensors" for name in ("whole", "two"))
    assert whole.read_bytes() == two.read_bytes()
    after = base.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_two_processes_draw_and_train_as_one_with_twice_the_batch(
    pipeline, photos, tmp_path, monkeypatch
):
    places = [str(pipeline), str(photos), str(tmp_path / "two"), str(tmp_path / "cache of two")]
    outcomes = finish(start(["-c", TWO, *places], 2))
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    monkeypatch.setattr(class_images, "PIXELS", TWO_AT_A_TIME)
    train_alone(pipeline, photos, tmp_path / "one", tmp_path / "cache of one", batch_size=2)
    paths = [sorted((tmp_path / f"cache of {n}").rglob("0*.png")) for n in ("one", "two")]
    assert [len(found) for found in paths] == [5, 5]
    for one, two in zip(*paths, strict=True):
        assert one.read_bytes() == two.read_bytes()
    path = "delta.safetensors"
    one, two = (trained_tensors(Delta.load(tmp_path / name / path)) for name in ("one", "two"))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_kind_of_base_is_personalised(name, photos, tmp_path, monkeypatch):
    kind, scheduler = FAMILIES[name]
    # a FLUX does not say what size it was trained at, and would draw 1,024 pixels
    base = load_base(TINY_PIPELINES[kind].save(tmp_path / kind, scheduler=scheduler), image_size=16)
    monkeypatch.setattr(previews, "STEPS", 2)
    monkeypatch.setattr(class_images, "STEPS", 2)
    delta = train(base, photos, tmp_path / "run", method="bitfit", sample_every=3)
    assert delta.provenance.training["dreambooth"] == {
        "token": "sks",
        "class_name": "owl",
        "instance_prompt": "a photo of sks owl",
        "class_prompt": "a photo of a owl",
        "class_images": 5,
    }
    assert (tmp_path / "run" / "samples" / "step-3.png").is_file()
    saved = Delta.load(tmp_path / "run" / "delta.safetensors")
    drawn = smidgen.sample(base, delta=saved, steps=2, guidance=2.0)
    named = smidgen.sample(base, delta=saved, prompts="a photo of sks owl", steps=2, guidance=2.0)
    assert [image.tobytes() for image in drawn] == [image.tobytes() for image in named]


def test_without_a_prior_no_image_of_the_class_is_drawn_or_trained_on(base, photos, tmp_path):
    delta = train(base, photos, tmp_path / "run", prior_weight=0.0)
    assert not (tmp_path / "cache" / "class-images").exists()
    assert delta.provenance.training["dreambooth"]["class_images"] == 0
    assert delta.provenance.training["data"]["images"] == 4
    assert len(read_latents(base, config(photos, class_images=None, training={"prior_weight": 0})))


def test_images_of_the_class_may_be_a_folder_and_are_part_of_what_a_run_is(base, photos, tmp_path):
    owls = write_folder(tmp_path / "owls", ("barn", "snow"), 2)
    (owls / "barn" / "broken.png").write_bytes(b"no image")
    settings = {"class_data": owls, "max_bad_share": 0.3}
    delta = train(base, photos, tmp_path / "run", **settings)
    assert delta.provenance.training["dreambooth"]["class_images"] == 4
    skipped = json.loads((tmp_path / "run" / "bad_files.json").read_text())
    assert [file["file"] for file in skipped] == ["barn/broken.png"]
    assert not (tmp_path / "cache" / "class-images").exists()
    (owls / "snow" / "0.png").unlink()
    with pytest.raises(UsageError, match=r"the class images.* changed since"):
        train(base, photos, tmp_path / "run", **settings, steps=5)
    for path in owls.rglob("*.png"):
        path.unlink()
    with pytest.raises(SmidgenError, match=r'no usable image in ".*owls"'):
        train(base, photos, tmp_path / "new", **settings)


def test_validation_holds_out_of_the_subject_alone_and_nothing_unless_asked(base, photos, tmp_path):
    train(base, photos, tmp_path / "plain")
    assert not any("validation_loss" in line for line in read_log(tmp_path / "plain"))
    train(base, photos, tmp_path / "held", validation_share=0.5)
    assert any("validation_loss" in line for line in read_log(tmp_path / "held"))


def test_captions_with_the_token_stand_for_the_prompt_and_others_are_named(base, photos, tmp_path):
    (photos / "1.txt").write_text("an sks owl at night\nan {token} owl")
    latents = read_latents(base, config(photos))
    assert latents.captions is not None
    assert latents.captions[:4] == (
        ("a photo of sks owl",),
        ("an sks owl at night", "an sks owl"),
        ("a photo of sks owl",),
        ("a photo of sks owl",),
    )
    of_class = ("a photo of a owl", "an owl at night", "an owl")
    assert {*latents.captions[4:]} == {(text,) for text in of_class}
    delta = train(base, photos, tmp_path / "run", prompt="an {class}")
    assert delta.provenance.training["captions"]["images"] == 1
    assert delta.provenance.training["dreambooth"]["class_prompt"] == "an owl"
    assert labels_of(base, delta).names == ("an sks owl",)
    (photos / "2.txt").write_text("an owl")
    with pytest.raises(SmidgenError, match=r'caption of 2\.png is without the token "sks"'):
        train(base, photos, tmp_path / "other")
    train(base, photos, tmp_path / "other", captions="none")


def test_the_class_is_told_what_the_subject_is_told_without_the_token(base, photos, tmp_path):
    (photos / "1.txt").write_text("an {token} owl in navy\na photo of {token} owl")
    (photos / "2.txt").write_text("a sks owl in green")
    run = config(photos, class_images=7)
    latents = read_latents(base, run)
    assert latents.captions is not None
    prompts = ("a photo of a owl", "an owl in navy", "an owl in green")
    assert class_prompts(run, latents.captions[: latents.num_own]) == prompts
    told = [own for (own,) in latents.captions[latents.num_own :]]
    assert told == [prompts[number % 3] for number in range(7)]
    (folder,) = (tmp_path / "cache" / "class-images").iterdir()
    drawing = class_images.drawing_of(base, run, prompts)
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        assert drawing.name(number) == told[number]
        alone = drawing.images([number])[0].astype(int)  # products round by the size of a batch
        assert np.abs(np.asarray(Image.open(path)).astype(int) - alone).max() <= 1


def test_previews_show_the_subject(base, photos, tmp_path, monkeypatch):
    shown, drawing = [], previews._drawing
    monkeypatch.setattr(previews, "STEPS", 1)

    def seen(base, labels, count):
        shown.append((labels.names, count))
        return drawing(base, labels, count)

    monkeypatch.setattr(previews, "_drawing", seen)
    train(base, photos, tmp_path / "run", sample_every=3, metrics_every=3)
    names = ("a photo of sks owl",)
    assert shown == [(names, previews.GRID_CAPTIONS), (names, previews.SUBJECT_IMAGES)]
    assert any("kid" in line or "fd" in line for line in read_log(tmp_path / "run"))


@pytest.mark.slow
def test_a_dry_run_tells_what_the_training_does_and_counts_twice_the_rows(
    pipeline, base, photos, tmp_path
):
    facts = plan_run(pipeline, config(photos), given={})
    assert facts["refusal"] is None
    assert facts["images"].images == 4
    assert facts["subject"] == {
        "prompt": "a photo of sks owl",
        "class_prompt": "a photo of a owl",
        "class_images": "5, drawn by the base where the cache lacks them",
    }
    assert not (tmp_path / "cache").exists()
    wide = RunConfig(data=photos, output=tmp_path / "x", training=TrainingConfig(batch_size=4))
    rows = plan_run(pipeline, wide, given={})["memory"]["step"]
    assert facts["memory"]["step"] == pytest.approx(rows, rel=0.01)
    assert time_steps(base, config(photos), 1)["seconds"] > 0
    train(base, photos, tmp_path / "run")
    lr = {"lr": SETTINGS["lr"], "steps": SETTINGS["steps"], "trackers": ()}
    planned = config(photos, method="lora", training=lr)
    assert plan_run(base.source, planned, given={})["run"] == "finished"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_name": "owl " * 40}, r'prompt "a photo of sks .* is too long: .* 77 tokens'),
        ({"prompt": "a {class}" + "!" * 99}, r'prompt "a .* is too long: .* reads 77 tokens'),
    ],
)
def test_a_prompt_that_the_encoder_cuts_is_refused_before_anything_is_drawn(
    pipeline, base, photos, tmp_path, settings, message
):
    with pytest.raises(UsageError, match=message):
        train(base, photos, tmp_path / "run", **settings)
    assert not (tmp_path / "cache" / "class-images").exists()
    prompt = {"training": {"prompt": settings.pop("prompt", None)}}
    refusal = plan_run(pipeline, config(photos, **settings, **prompt), given={})["refusal"]
    assert "is too long" in refusal


def test_a_token_that_means_something_is_named(pipeline, base, photos, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="smidgen")
    train(base, photos, tmp_path / "plain")
    assert not caplog.records
    train(base, photos, tmp_path / "run", token="q")  # one entry of the tiny vocabulary
    assert 'token "q" is a word that base "' in caplog.text
    facts = plan_run(pipeline, config(photos, token="q", output=tmp_path / "new"), given={})
    assert 'token "q" is a word' in facts["subject"]["warning"]


def test_a_subject_is_one_folder_of_a_base_that_reads_prompts(base, tmp_path):
    several = write_folder(tmp_path / "several")
    with pytest.raises(UsageError, match=r"has 2 classes \(a, b \.\.\.\); task dreambooth learns"):
        train(base, several, tmp_path / "run")
    with pytest.raises(UsageError, match="task dreambooth is of no use to base"):
        train(tiny_base(), several / "a", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SmidgenError, match=r'no usable image in ".*empty"; add images'):
        train(base, tmp_path / "empty", tmp_path / "run")
