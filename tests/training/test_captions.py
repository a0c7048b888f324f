"""Training on captions: which caption an image is told, what is encoded, what a run promises."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import smidgen
from smidgen.api.planning import plan_run
from smidgen.core.delta import Delta
from smidgen.diffusion.objective import drop_labels
from smidgen.errors import SmidgenError, UsageError
from smidgen.models.labels import Labels, labels_of
from smidgen.models.pretrained import load_base
from smidgen.training import previews
from smidgen.training.captions import a_few, choices_of, task_of
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.images import read_latents
from smidgen.training.objective import Task, draw_batch
from smidgen.training.randomness import Streams
from tests.data.test_webdataset import write_shard
from tests.tiny.images import write_image, write_photos
from tests.tiny.pipelines import TINY_PIPELINES

SETTINGS = {
    "method": "lora",
    "batch_size": 2,
    "lr": 0.05,
    "label_dropout": 0.0,
    "validation_share": 0.2,
    "trackers": (),
    "progress": False,
}
CAPTIONS = {"a": ("an owl", "an owl at night"), "b": ("a fox",), "c": (), "d": ("an owl",)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipelines")
    return {name: TINY_PIPELINES[name].save(root / name) for name in ("sd", "sd3", "flux")}


@pytest.fixture(scope="module", params=["sd", "sd3"])
def base(request, folders):
    return load_base(folders[request.param])


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    for number, (name, texts) in enumerate(CAPTIONS.items()):
        write_image(root / f"{name}.png", seed=number)
        if texts:
            (root / f"{name}.txt").write_text("\n".join(texts))
    return root


@pytest.fixture
def config(photos, tmp_path):
    return RunConfig(data=photos, output=tmp_path / "run", cache_dir=tmp_path / "cache").resolved()


def train(base, photos, output, **settings) -> Delta:
    cache = photos.parent / "cache"
    given = SETTINGS | {"steps": 3, "cache_dir": cache} | settings
    return smidgen.train(base, photos, output=output, **given)


def task_on(base, config):
    latents = read_latents(base, config)
    delta = Delta.__new__(Delta)  # of captions nothing is asked of the delta
    return latents, task_of(base, delta, latents, config)


def test_an_image_is_told_one_of_its_own_captions_and_without_one_nothing(base, config):
    latents, task = task_on(base, config)
    assert task.labels.names == ("an owl", "an owl at night", "a fox")
    training = TrainingConfig(batch_size=200, label_dropout=0.0)
    images = torch.arange(4).repeat(50)
    labels = draw_batch(latents, images, Streams(0), task, training).labels
    told = [{*labels[images == image].tolist()} for image in range(4)]
    assert told == [{0, 1}, {2}, {task.labels.null}, {0}]
    share = (labels[images == 0] == 0).double().mean()
    assert 0.25 < share < 0.75  # 50 fair draws: outside once in 2,500 seeds, and this seed is fixed


def test_images_and_captions_belong_together_by_file_whatever_order_the_table_has(base, config):
    root = config.data
    for path in root.glob("*.txt"):
        path.unlink()
    rows = [{"file_name": f"{n}.png", "text": list(t)} for n, t in CAPTIONS.items() if t]
    (root / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in reversed(rows)))
    latents = read_latents(base, config)
    assert latents.captions is not None
    found = dict(zip(latents.names, latents.captions, strict=True))
    assert found == {f"{name}.png": texts for name, texts in CAPTIONS.items()}


def test_conditions_of_a_batch_are_those_that_the_encoders_give(base, config, monkeypatch):
    _, task = task_on(base, config)
    labels = torch.tensor([2, 3, 0, 0])
    expected = base.conditioner.encode(["a fox", "", "an owl", "an owl"])
    found = task.labels.conditions(labels)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    def refuse(*_):
        raise AssertionError("encoded already")

    monkeypatch.setattr(base.conditioner, "_load", refuse)
    _, again = task_on(base, config)
    assert torch.equal(again.labels.conditions(labels)["text"], expected["text"])


def test_a_damaged_store_is_encoded_again(base, config, caplog):
    _, task = task_on(base, config)
    expected = task.labels.conditions(torch.tensor([0]))["text"].clone()
    (path,) = (config.cache_dir / "conditions").rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()
    path.write_bytes(data)
    _, again = task_on(base, config)
    assert "is damaged (its checksum differs)" in caplog.text
    assert torch.equal(again.labels.conditions(torch.tensor([0]))["text"], expected)


@pytest.mark.slow
def test_a_run_on_captions_resumes_bit_for_bit(base, photos, tmp_path):
    settings = {"steps": 4, "label_dropout": 0.3, "checkpoint_every": 2}
    train(base, photos, tmp_path / "whole", **settings)
    train(base, photos, tmp_path / "two", **settings | {"steps": 2})
    train(base, photos, tmp_path / "two", **settings)
    whole, two = (tmp_path / name / "delta.safetensors" for name in ("whole", "two"))
    assert whole.read_bytes() == two.read_bytes()


@pytest.mark.slow
def test_captions_change_what_is_learned_and_a_finished_run_names_that_they_changed(
    base, photos, tmp_path
):
    one = train(base, photos, tmp_path / "one")
    plain = train(base, photos, tmp_path / "plain", captions="none")
    assert any(
        not torch.equal(a, b) for a, b in zip(one.parameters(), plain.parameters(), strict=True)
    )
    (photos / "b.txt").write_text("a red fox")
    with pytest.raises(UsageError, match="the captions changed since"):
        train(base, photos, tmp_path / "one")
    with pytest.raises(UsageError, match="the captions changed since"):
        train(base, photos, tmp_path / "one", steps=5)
    with pytest.raises(UsageError, match="the captions changed since"):
        train(base, photos, tmp_path / "one", captions="none")
    train(base, photos, tmp_path / "plain", captions="none")


def test_a_delta_names_some_of_its_captions_and_asks_for_a_prompt(
    base, photos, tmp_path, monkeypatch
):
    monkeypatch.setattr(previews, "STEPS", 2)  # of the four that the tiny base has
    delta = train(base, photos, tmp_path / "run", sample_every=3)
    told = delta.provenance.training
    assert told["captions"] == {
        "source": "txt",
        "images": 3,
        "distinct": 3,
        "examples": ["an owl", "an owl at night", "a fox"],
    }
    assert "prompts" not in told
    assert (tmp_path / "run" / "samples" / "step-3.png").is_file()
    with pytest.raises(UsageError, match=r'trained on captions: .*--prompt.* such as "an owl"'):
        labels_of(base, delta)
    images = smidgen.sample(base, delta=delta, prompts="a fox", steps=2)
    assert images[0].size == (16, 16)


def test_images_of_one_class_each_are_held_out_where_captions_tell_them_apart(
    base, photos, tmp_path
):
    root = tmp_path / "classes"
    for number in range(5):
        write_image(root / f"class {number}" / "1.png", seed=number)
        (root / f"class {number}" / "1.txt").write_text(f"picture {number}")

    def validated(name, **settings) -> bool:
        train(base, root, tmp_path / name, **settings)
        lines = (tmp_path / name / "log.jsonl").read_text()
        return "validation_loss" in lines

    assert validated("captions")
    assert not validated("prompts", captions="none")


def test_previews_of_many_captions_are_of_a_few(base, config):
    names = tuple(f"caption {number}" for number in range(100))
    labels = Labels(names=names, conditions=lambda labels: {"labels": labels})
    few = a_few(labels, 4)
    assert few.names == ("caption 0", "caption 25", "caption 50", "caption 75")
    assert few.conditions(torch.tensor([1, few.null]))["labels"].tolist() == [25, 100]
    assert a_few(labels, 1000).names == names


def test_metrics_on_the_way_take_captions_for_no_classes(folders, tmp_path, monkeypatch):
    root = write_photos(tmp_path / "photos")
    for path in root.rglob("*.png"):
        path.with_suffix(".txt").write_text(f"number {path.stem} of a kind")
    monkeypatch.setattr(previews, "STEPS", 1)
    monkeypatch.setattr(previews, "METRIC_IMAGES", 4)
    base = load_base(folders["sd3"])
    train(base, root, tmp_path / "run", metrics_every=3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert any("kid" in line or "fid" in line for line in lines)


def test_every_caption_of_an_image_is_among_its_choices():
    choices = choices_of([("x",), (), ("y", "x", "z")], ("x", "y", "z"))
    images = torch.tensor([0, 1, 2] * 60)
    drawn = choices.draw(images, torch.Generator().manual_seed(0))
    assert [{*drawn[images == image].tolist()} for image in range(3)] == [{0}, {3}, {0, 1, 2}]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_dry_run_tells_of_captions_what_the_training_finds(folders, name, photos, config):
    """77 tokens of a CLIP, 512 of FLUX's T5, of which the tiny tokenizers make one a letter."""
    (photos / "d.txt").write_text("owl " * 300)
    facts = plan_run(folders[name], config, given={})
    found = facts["images"].captions
    assert facts["refusal"] is None
    assert (found.source, found.images, found.several, found.distinct) == ("txt", 3, 1, 4)
    assert (found.without, found.cut) == (("c.png",), ("d.png",))
    (photos / "d.txt").write_text("owl " * (20 if name == "sd" else 120))  # 60 and 480 letters
    facts = plan_run(folders[name], config, given={})
    assert facts["images"].captions.cut == ()
    latents = read_latents(load_base(folders[name]), config)
    assert latents.findings == facts["images"]
    assert "3 of 4 image(s) have captions" in latents.report()


def test_what_is_wrong_with_captions_is_refused_before_anything_is_encoded(
    folders, base, photos, config, tmp_path
):
    (photos / "b.txt").write_text(" ")
    with pytest.raises(SmidgenError, match=r"the caption b\.txt is empty"):
        train(base, photos, tmp_path / "run")
    assert not (tmp_path / "cache").exists()
    assert "b.txt is empty" in plan_run(folders["sd"], config, given={})["refusal"]
    (photos / "b.txt").write_text("a fox")
    with pytest.raises(UsageError, match="prompt makes those of classes, and the images have cap"):
        train(base, photos, tmp_path / "run", prompt="art of a {class}")
    with pytest.raises(UsageError, match='captions is "jpeg"'):
        train(base, photos, tmp_path / "run", captions="jpeg")


def test_captions_are_refused_where_classes_are_known(photos, tmp_path):
    base = load_base("glyphs")
    with pytest.raises(UsageError, match='captions is of no use to base "glyphs"'):
        train(base, photos, tmp_path / "run", captions="txt")
    config = RunConfig(data=photos, output=Path(tmp_path / "run"), captions="txt")
    facts = plan_run("glyphs", config, given={})
    assert "captions is of no use" in facts["refusal"]
    config = dataclasses.replace(config, captions="auto")
    facts = plan_run("glyphs", config, given={})
    assert facts["refusal"] is None
    assert facts["images"].captions is None


def test_captions_in_shards_are_trained_on_and_no_classes(folders, photos, tmp_path):
    files = {}
    for name, texts in CAPTIONS.items():
        files[f"{name}.png"] = (photos / f"{name}.png").read_bytes()
        if texts:
            files[f"{name}.txt"] = "\n".join(texts)
    write_shard(tmp_path / "shards" / "0.tar", files)
    base = load_base(folders["sd"])
    delta = train(base, tmp_path / "shards", tmp_path / "run", layout="webdataset", captions="auto")
    assert delta.provenance.training["captions"]["source"] == "webdataset"
    assert delta.provenance.training["captions"]["images"] == 3
    with pytest.raises(SmidgenError, match='are captions, not classes, and base "glyphs" reads no'):
        train(load_base("glyphs"), tmp_path / "shards", tmp_path / "other", layout="webdataset")


def test_a_prompt_longer_than_the_encoders_read_is_refused_by_name(folders):
    base = load_base(folders["sd"])
    with pytest.raises(UsageError, match=r'prompt "owl owl .*" is too long: .* reads 77 tokens'):
        smidgen.sample(base, prompts=["a fox", "owl " * 30], steps=2)
    assert len(smidgen.sample(base, prompts=["owl " * 25], steps=2)) == 1  # 75, a start and an end


def test_without_captions_nothing_more_is_drawn_than_who_is_dropped(base, config):
    """So that such runs are what they were before there were captions."""
    config = dataclasses.replace(config, captions="none")
    latents = read_latents(base, config)
    assert latents.captions is None
    task = Task(process=base.process, labels=Labels(names=("photos",)))
    streams, alone = Streams(0), Streams(0)
    training = TrainingConfig(batch_size=4, label_dropout=0.5)
    labels = draw_batch(latents, torch.arange(4), streams, task, training).labels
    expected = drop_labels(torch.zeros(4, dtype=torch.long), 1, 0.5, alone.labels)
    assert torch.equal(labels, expected)
    assert torch.equal(streams.labels.get_state(), alone.labels.get_state())
