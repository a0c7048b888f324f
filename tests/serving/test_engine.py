"""Images of one batch are those that they would be alone."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from smidgen.errors import SmidgenError, UsageError
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import prepare
from smidgen.serving import pools
from smidgen.serving.engine import Engine, Full, Late
from smidgen.serving.job import Job
from tests.tiny.bases import tiny_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.weights import moved

SECONDS = 60.0


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def deltas(base):
    """Of four kinds: two share a bank, tokens have one without the base, full acts alone."""
    found = {
        "one": tiny_delta(base, "difffit", std=0.05),
        "two": moved(tiny_delta(base, "difffit", std=0.05), 0.05, seed=9),
        "lora": tiny_delta(base, "lora", std=0.05),
        "vpt": tiny_delta(base, "vpt", std=0.05),
        "full": tiny_delta(base, "full", std=0.01),
    }
    for delta in found.values():
        delta.float().provenance = dataclasses.replace(
            delta.provenance, fingerprint=base.fingerprint
        )
    return found


@pytest.fixture
def engine(base):
    made = Engine(base, slots=2, batch=8, waiting=100)
    yield made
    made.stop()


def jobs_of(base, deltas, name, **settings):
    delta = deltas.get(name)
    drawing = prepare(base, SamplingConfig(**settings), delta=delta)
    other = None
    count = drawing.num_images
    return [
        Job(drawing, number, (name if delta else None, other), SECONDS) for number in range(count)
    ]


def expected(job):
    return job.drawing.images([job.number])[0]


MIX = [
    ("one", {"steps": 7, "guidance": 3.0, "seed": 1, "num_images": 2}),
    ("two", {"steps": 5, "sampler": "dpm++", "guidance": 1.0, "seed": 2}),
    ("one", {"steps": 6, "sampler": "ddim", "guidance_kind": "domain", "guidance": 2.0}),
    ("lora", {"steps": 4, "guidance_interval": (0.2, 0.6), "num_images": 3}),
    ("vpt", {"steps": 3, "guidance_kind": "domain", "num_images": 1}),
    ("full", {"steps": 3, "guidance": 2.0, "num_images": 1}),
    (None, {"steps": 5, "guidance": 2.0, "seed": 4}),
]


def test_images_of_a_mixed_batch_are_those_of_sample(base, deltas, engine):
    jobs = [job for name, settings in MIX for job in jobs_of(base, deltas, name, **settings)]
    assert len(jobs) > 8  # more than form at once
    engine.submit(jobs)
    found = [job.result.result(SECONDS) for job in jobs]
    engine.stop()  # the base is ours again
    for job, image in zip(jobs, found, strict=True):
        difference = np.abs(image.astype(int) - expected(job).astype(int)).max()
        assert difference <= 1, (job.keys, job.drawing.config)
    assert len({image.tobytes() for image in found}) == len(found)
    assert engine.counts.images == len(jobs)
    assert engine.counts.calls < sum(job.drawing.config.steps for job in jobs)  # they shared calls


def test_deltas_leave_slots_for_others_and_come_back(base, deltas, engine):
    others = {f"d{n}": moved(deltas["one"].clone(), 0.05, seed=20 + n) for n in range(5)}
    jobs = [job for n in (0, 1, 2, 3, 4, 0, 2) for job in jobs_of(base, others, f"d{n}", steps=2)]
    engine.submit(jobs)
    found = [job.result.result(SECONDS) for job in jobs]
    engine.stop()
    assert engine.pools.resident <= 2
    assert all(pool.is_idle for pool in engine.pools.pools)
    for job, image in zip(jobs, found, strict=True):
        assert np.abs(image.astype(int) - expected(job).astype(int)).max() <= 1


def test_a_cancelled_or_late_image_leaves_and_frees_its_slot(base, deltas, engine):
    slow = jobs_of(base, deltas, "one", steps=900, num_images=2)
    late = dataclasses.replace(
        jobs_of(base, deltas, "two", steps=900, num_images=1)[0], seconds=0.2
    )
    engine.submit([*slow, late])
    engine.cancel(slow)
    with pytest.raises(Late, match=r"over 0\.2 s"):
        late.result.result(SECONDS)
    (quick,) = jobs_of(base, deltas, "lora", steps=2, num_images=1)
    engine.submit([quick])
    quick.result.result(SECONDS)
    engine.stop()
    assert all(job.result.cancelled() for job in slow)
    assert engine.active == engine.waiting == 0
    assert all(pool.is_idle for pool in engine.pools.pools)


def test_more_than_may_wait_is_refused_as_a_whole(base, deltas):
    engine = Engine(base, slots=1, batch=1, waiting=3)
    slow = jobs_of(base, deltas, "one", steps=900, num_images=3)
    engine.submit(slow)
    with pytest.raises(Full, match="wait already") as caught:
        engine.submit(jobs_of(base, deltas, "one", steps=2, num_images=3))
    assert caught.value.seconds >= 1
    assert engine.waiting + engine.active == 3
    with pytest.raises(UsageError, match="at most 3 may wait"):
        engine.submit(jobs_of(base, deltas, "one", steps=2, num_images=4))
    engine.cancel(slow)
    engine.stop()
    with pytest.raises(SmidgenError, match="stopping"):
        engine.submit(jobs_of(base, deltas, "one", steps=2, num_images=1))


def test_an_error_of_one_image_is_its_own(base, deltas, engine):
    good, bad = jobs_of(base, deltas, "one", steps=5, num_images=2)

    def broken(labels):
        raise ValueError("of this one")

    labels = dataclasses.replace(bad.drawing.labels, conditions=broken)
    bad.drawing = dataclasses.replace(bad.drawing, labels=labels)
    engine.submit([bad, good])
    with pytest.raises(ValueError, match="of this one"):
        bad.result.result(SECONDS)
    assert good.result.result(SECONDS).shape == (8, 8, 3)


def test_pictures_on_the_way_come_before_the_last_and_near_it(base, deltas, engine):
    (job,) = jobs_of(base, deltas, "one", steps=10, num_images=1, sampler="ddim")
    seen = []
    job.partials, job.show = 3, lambda number, image: seen.append((number, image))
    engine.submit([job])
    last = job.result.result(SECONDS).astype(int)
    assert [number for number, _ in seen] == [0, 1, 2]
    away = [np.abs(image.astype(int) - last).mean() for _, image in seen]
    assert away[-1] < away[0]


def test_stop_draws_what_was_taken(base, deltas):
    engine = Engine(base, slots=2, batch=2, waiting=10)
    jobs = jobs_of(base, deltas, "two", steps=4, num_images=5)
    engine.submit(jobs)
    engine.stop()
    assert all(job.result.done() for job in jobs)
    assert not any(
        thread.name == "smidgen-engine" and thread.is_alive() for thread in threading.enumerate()
    )
    assert not torch.is_inference_mode_enabled()
    assert base.denoiser.fast is None  # nothing stays attached


def test_one_who_leaves_at_the_last_step_harms_nobody(base, deltas, engine):
    """As when the answer and the end of the connection come at the same moment."""
    leaving, other = jobs_of(base, deltas, "one", steps=3, num_images=2)
    leaving.show, leaving.partials = lambda number, image: leaving.result.cancel(), 2
    engine.submit([leaving, other])
    assert other.result.result(SECONDS).shape == (8, 8, 3)
    (later,) = jobs_of(base, deltas, "two", steps=2, num_images=1)
    engine.submit([later])
    assert later.result.result(SECONDS).shape == (8, 8, 3)
    engine.stop()
    assert engine.counts.images == 2
    assert all(pool.is_idle for pool in engine.pools.pools)


def test_a_delta_for_which_there_is_no_memory_ends_alone(base, deltas, engine, monkeypatch):
    def full(self, delta):
        raise MemoryError("no room for a bank")

    (bad,) = jobs_of(base, deltas, "one", steps=2, num_images=1)
    (good,) = jobs_of(base, deltas, None, steps=2, num_images=1)
    monkeypatch.setattr(pools.Pools, "_made_of", full)
    engine.submit([bad, good])
    with pytest.raises(MemoryError):
        bad.result.result(SECONDS)
    assert good.result.result(SECONDS).shape == (8, 8, 3)
    assert engine.is_alive


def test_a_mistake_in_a_tick_ends_its_images_and_not_the_engine(base, deltas, engine, monkeypatch):
    (bad,) = jobs_of(base, deltas, "one", steps=2, num_images=1)
    with monkeypatch.context() as patch:
        patch.setattr("smidgen.serving.engine.calls_of", lambda jobs, base: 1 / 0)
        engine.submit([bad])
        with pytest.raises(ZeroDivisionError):
            bad.result.result(SECONDS)
    (good,) = jobs_of(base, deltas, "one", steps=2, num_images=1)
    engine.submit([good])
    assert good.result.result(SECONDS).shape == (8, 8, 3)


def test_a_coarse_delta_before_a_fine_one_does_not_round_it(base, deltas, engine):
    coarse = {"coarse": deltas["two"].clone().to(torch.bfloat16), "one": deltas["one"]}
    jobs = [*jobs_of(base, coarse, "coarse", steps=4), *jobs_of(base, coarse, "one", steps=4)]
    engine.submit(jobs)
    found = [job.result.result(SECONDS) for job in jobs]
    engine.stop()
    assert len(engine.pools.pools) == 1
    for job, image in zip(jobs[4:], found[4:], strict=True):
        assert np.abs(image.astype(int) - expected(job).astype(int)).max() <= 1
