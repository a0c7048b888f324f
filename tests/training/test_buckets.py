"""Training on images that keep their shape: which bucket is next, resumed and over processes, and
that one bucket is as none.
"""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import smidgen
from smidgen.api.planning import plan_run
from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.models.pretrained import load_base
from smidgen.training.buckets import BucketOrder, sizes_of
from smidgen.training.captions import task_of
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.images import read_latents
from smidgen.training.randomness import Shuffle
from smidgen.training.run import fresh_delta
from smidgen.training.validation import Validation
from tests.launch import finish, start
from tests.tiny.deltas import trained_tensors
from tests.tiny.images import write_image, write_photos
from tests.tiny.pipelines import TINY_PIPELINES

SHAPES = {"square": (32, 32, 5), "wide": (50, 30, 4), "tall": (30, 50, 1)}
SETTINGS = {
    "method": "lora",
    "steps": 6,
    "batch_size": 2,
    "lr": 0.01,
    "checkpoint_every": 3,
    "validation_share": 0.2,
    "trackers": (),
    "progress": False,
}
RUN = """
import sys
from tests.training.test_buckets import train_run
train_run(*sys.argv[1:])
"""


def train_run(base, photos, output, cache, batch_size):
    settings = SETTINGS | {"batch_size": int(batch_size), "cache_dir": cache}
    smidgen.train(base, photos, output=output, **settings)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten pictures of three shapes, some with captions of their own."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for shape, (width, height, count) in SHAPES.items():
        for number in range(count):
            path = write_image(root / f"{shape} {number}.png", number, width, height)
            path.with_suffix(".txt").write_text(f"a {shape} picture {number % 2}")
    return root


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "squares", per_class=4)


def config_of(photos, tmp_path, **settings):
    own = {name: settings.pop(name) for name in ("buckets", "task") if name in settings}
    return RunConfig(
        data=photos,
        output=tmp_path / "run",
        method="lora",
        training=TrainingConfig(**settings),
        **own,
    ).resolved()


def losses(run: Path) -> list[float]:
    lines = (run / "log.jsonl").read_text().splitlines()
    return [found["loss"] for line in lines if "loss" in (found := json.loads(line))]


def test_one_bucket_is_taken_as_if_there_were_none():
    images = torch.arange(3, 10)
    order, plain = BucketOrder([images], 4), Shuffle(images, 4)
    for count in (3, 3, 9, 1):
        assert torch.equal(order.take(count), plain.take(count))
        assert (order.epoch, order.places) == (plain.epoch, [(plain.epoch, plain.position)])


BUCKETS = [torch.arange(40), torch.arange(40, 47), torch.arange(47, 49), torch.arange(49, 50)]


def test_every_image_is_taken_equally_often_in_batches_of_one_bucket():
    order, count = BucketOrder(BUCKETS, 0), 8
    bucket_of = {int(image): number for number, bucket in enumerate(BUCKETS) for image in bucket}
    counts: Counter = Counter()
    for _ in range(2000):
        taken = order.take(count).tolist()
        assert len(taken) == count
        assert len({bucket_of[image] for image in taken}) == 1
        counts.update(taken)
        # a small bucket is ahead by the passes of one batch through it, at most
        assert max(counts.values()) <= min(counts.get(i, 0) for i in range(50)) + count + 1
    assert set(counts) == set(range(50))
    assert max(counts.values()) / min(counts.values()) < 1.04


def test_no_bucket_is_starved():
    order = BucketOrder(BUCKETS, 0)
    taken = [set(order.take(8).tolist()) for _ in range(len(BUCKETS))]
    assert all(any(batch <= set(bucket.tolist()) for batch in taken) for bucket in BUCKETS)


def test_an_order_goes_on_from_its_places():
    whole, resumed = BucketOrder(BUCKETS, 1), BucketOrder(BUCKETS, 1)
    for _ in range(17):
        whole.take(8)
    resumed.seek(whole.places)
    for _ in range(40):
        assert torch.equal(whole.take(8), resumed.take(8))
    with pytest.raises(ValueError, match="longer"):
        BucketOrder(BUCKETS, 1).seek([*whole.places, (0, 0)])


@pytest.mark.slow
def test_squares_train_to_the_same_bits_with_and_without_buckets(folder, squares, tmp_path):
    runs = {buckets: tmp_path / f"{buckets}" for buckets in (None, True, False)}
    found = [
        smidgen.train(folder, squares, output=run, buckets=buckets, **SETTINGS)
        for buckets, run in runs.items()
    ]
    for other in found[1:]:
        for one, same in zip(found[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(one, same)
    assert losses(runs[None]) == losses(runs[True]) == losses(runs[False])
    # so that either goes on with the other
    again = smidgen.train(folder, squares, output=runs[False], **SETTINGS | {"steps": 7})
    assert again.provenance.training["step"] == 7


@pytest.mark.slow
def test_a_run_on_buckets_that_was_stopped_ends_in_the_same_bits(folder, photos, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    smidgen.train(folder, photos, output=whole, **SETTINGS)
    smidgen.train(folder, photos, output=parts, **SETTINGS | {"steps": 3})
    smidgen.train(folder, photos, output=parts, **SETTINGS)
    one, other = (Delta.load(run / "delta.safetensors") for run in (whole, parts))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    assert losses(whole) == losses(parts)
    data = one.provenance.training["data"]
    assert data["buckets"] == {"12x20": 1, "16": 5, "20x12": 4}
    with pytest.raises(UsageError, match="the buckets changed since"):
        smidgen.train(folder, photos, output=whole, buckets=False, **SETTINGS)
    with pytest.raises(UsageError, match="the buckets changed since"):
        smidgen.train(folder, photos, output=whole, buckets=False, **SETTINGS | {"steps": 9})


@pytest.mark.slow
def test_two_processes_take_the_same_bucket_and_train_as_one(folder, photos, tmp_path):
    given = [str(folder), str(photos)]
    outcomes = finish(
        start(["-c", RUN, *given, str(tmp_path / "two"), str(tmp_path / "kept"), "1"], 2)
    )
    assert [code for code, *_ in outcomes] == [0, 0], outcomes
    train_run(*given, tmp_path / "one", tmp_path / "kept", 2)
    one, two = (Delta.load(tmp_path / run / "delta.safetensors") for run in ("one", "two"))
    for name, tensor in trained_tensors(one).items():
        # gradients of other batch sizes are summed in another order
        torch.testing.assert_close(trained_tensors(two)[name], tensor, atol=1e-5, rtol=1e-3)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_a_validation_sees_each_held_out_image_in_its_shape(folder, photos, tmp_path):
    base = load_base(folder)
    config = config_of(photos, tmp_path, batch_size=4)
    latents = read_latents(base, config)
    delta = fresh_delta(base, config, latents)
    task = task_of(base, delta, latents, config)
    validation = Validation(latents, torch.arange(len(latents)), task, config.training)
    shapes = {draws.latents.shape[2:]: set(draws.images.tolist()) for draws in validation._draws}
    assert {tuple(shape): len(images) for shape, images in shapes.items()} == {
        (8, 8): 5,
        (6, 10): 4,
        (10, 6): 1,
    }
    times = torch.cat([draws.timesteps for draws in validation._draws])
    assert len(times) == 64
    network = SimpleNamespace(calls=[])

    def zero(x, t, condition):
        network.calls.append((x.shape, t.shape[0]))
        return torch.zeros_like(x)

    loss = validation.loss(zero, torch.device("cpu"), torch.float32)
    noise = torch.cat([draws.noise.square().mean(dim=(1, 2, 3)) for draws in validation._draws])
    assert loss == pytest.approx(noise.double().mean().item(), rel=1e-6)
    assert sum(count for _, count in network.calls) == 64


@pytest.mark.slow
def test_a_dry_run_says_how_many_images_are_in_each_bucket(folder, photos, tmp_path):
    config = config_of(photos, tmp_path)
    facts = plan_run(str(folder), config, given={})
    assert facts["refusal"] is None
    assert facts["images"].buckets == {"12x20": 1, "16": 5, "20x12": 4}
    assert "3 bucket(s), by the shape of the images: 1 at 12x20, 5 at 16, 4 at 20x12" in (
        facts["images"].lines()
    )
    without = dataclasses.replace(config, buckets=False)
    assert plan_run(str(folder), without, given={})["images"].buckets is None

    smidgen.train(folder, photos, output=config.output, **SETTINGS)
    same = dataclasses.replace(
        config,
        training=TrainingConfig(
            **{k: v for k, v in SETTINGS.items() if k not in ("method", "progress")}
        ),
    )
    assert plan_run(str(folder), same, given={})["refusal"] is None
    refusal = plan_run(str(folder), dataclasses.replace(same, buckets=False), given={})["refusal"]
    assert "the buckets changed since" in refusal


def test_buckets_are_refused_by_name_where_they_cannot_be(folder, squares, tmp_path):
    shipped = load_base("glyphs")
    with pytest.raises(UsageError, match=r'buckets cannot be: base "glyphs" knows classes'):
        smidgen.train(shipped, squares, output=tmp_path / "run", buckets=True, progress=False)
    assert sizes_of(shipped, config_of(squares, tmp_path)) == (shipped.image_size,)
    subject = {"task": "dreambooth", "token": "sks", "class_name": "bee"}
    with pytest.raises(UsageError, match="buckets cannot be: task dreambooth pairs"):
        smidgen.train(
            folder,
            squares / "bee",
            output=tmp_path / "run",
            buckets=True,
            **SETTINGS,
            **subject,
        )
    alone = smidgen.train(
        folder,
        squares / "bee",
        output=tmp_path / "run",
        buckets=True,
        prior_weight=0.0,
        **SETTINGS,
        **subject,
    )
    assert alone.provenance.training["step"] == SETTINGS["steps"]


@pytest.mark.slow
def test_a_run_keeps_to_the_precision_of_its_cache(folder, photos, tmp_path):
    settings = SETTINGS | {"output": tmp_path / "run", "cache_precision": "fp16"}
    whole = smidgen.train(folder, photos, **settings | {"output": tmp_path / "whole"})
    smidgen.train(folder, photos, **settings | {"steps": 3})
    half = smidgen.train(folder, photos, **settings)
    for a, b in zip(whole.parameters(), half.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UsageError, match="cache_precision"):
        smidgen.train(folder, photos, **settings | {"cache_precision": "fp32"})
