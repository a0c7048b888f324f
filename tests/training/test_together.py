"""Several processes train as one with their batches would: over gloo, on the CPU."""

import json
import signal
from pathlib import Path

import pytest
import torch

import smidgen
from smidgen.core.delta import Delta
from smidgen.models.labels import labels_of
from smidgen.models.pretrained import load_base
from smidgen.training.config import TrainingConfig
from smidgen.training.loop import train_delta
from smidgen.training.objective import Task
from tests.launch import finish, start
from tests.tiny.bases import tiny_base
from tests.tiny.deltas import DENOISER_METHODS, trained_tensors
from tests.tiny.hosts import TINY_HOSTS
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES
from tests.training.test_loop import CLASSES, build, latent_set

SETTINGS = {"steps": 6, "checkpoint_every": 3, "validation_share": 0.2, "trackers": (), "lr": 1e-3}
EQUAL = """
import sys
from tests.training.test_together import train_methods
train_methods(*sys.argv[1:], batch_size=2)
"""
RUN = """
import sys
from tests.training.test_together import train_run
train_run(*sys.argv[1:])
"""


def train_methods(folder, pipeline, batch_size):
    """Every method, with label dropout, accumulation and a validation; `adapter`, which needs the
    positions of a UNet, on the prompts of `pipeline`.
    """
    config = TrainingConfig(batch_size=batch_size, gradient_accumulation=2, **SETTINGS)
    for method in DENOISER_METHODS:
        base = load_base(pipeline) if method == "adapter" else tiny_base()
        delta = build(base, method)
        prompts = CLASSES if base.conditioner is not None else ()
        task = Task(process=base.process, labels=labels_of(base, delta, prompts))
        output = Path(folder) / method
        train_delta(base, delta, latent_set(num_views=2), config, output, task=task)


def train_run(photos, output, cache, die_at=0, **settings):
    """A run as a user starts it; at step `die_at` rank 1 is gone without a word."""
    if int(die_at):
        from smidgen.training import loop

        step = loop.update_average
        seen = []

        def update(*arguments):
            import os

            seen.append(None)
            if len(seen) == int(die_at) and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*arguments)

        loop.update_average = update
    smidgen.train(
        tiny_base(),
        photos,
        output=output,
        cache_dir=cache,
        flip=True,
        batch_size=2,
        progress=False,
        **(SETTINGS | {"steps": 12, "sample_every": 6, "trackers": ("tensorboard",)} | settings),
    )


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch_for_every_method(tmp_path):
    pipeline = TINY_PIPELINES["sd"].save(tmp_path / "sd")
    outcomes = finish(start(["-c", EQUAL, str(tmp_path / "two"), str(pipeline)], 2))
    assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    train_methods(tmp_path / "one", pipeline, batch_size=4)
    for method in DENOISER_METHODS:
        one, two = (
            trained_tensors(Delta.load(tmp_path / place / method / "delta.safetensors"))
            for place in ("one", "two")
        )
        assert list(one) == list(two)
        for name, expected in one.items():
            # Adam divides by the size of a gradient: rounding moves what has none, and a little
            # what hardly has one
            alive = TINY_HOSTS["dit"].alive(name, expected)
            pair = (tensor.detach().flatten()[alive] for tensor in (two[name], expected))
            torch.testing.assert_close(*pair, rtol=1e-3, atol=2e-5, msg=f"{method}: {name}")
        logs = [
            [json.loads(line) for line in (tmp_path / p / method / "log.jsonl").open()]
            for p in ("one", "two")
        ]
        for expected, found in zip(*logs, strict=True):
            assert found["step"] == expected["step"]
            for key in ("loss", "grad_norm", "validation_loss"):
                assert (key in found) == (key in expected)
                if key in expected:
                    assert found[key] == pytest.approx(expected[key], rel=1e-4), (method, key)


@pytest.mark.slow
def test_a_run_of_two_writes_once_and_is_found_finished(tmp_path):
    photos = write_photos(tmp_path / "photos")
    places = [str(photos), str(tmp_path / "run"), str(tmp_path / "cache")]
    for _ in range(2):
        outcomes = finish(start(["-c", RUN, *places], 2))
        assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))
    assert {path.name for path in (tmp_path / "run" / "samples").iterdir()} == {
        "step-6.png",
        "step-12.png",
    }
    ((code, _, error),) = finish(start(["-c", RUN, *places], 1))
    assert code != 0
    assert "the number of processes changed" in error


@pytest.mark.slow
def test_a_process_that_dies_ends_the_run_and_the_same_command_resumes_bit_equal(tmp_path):
    photos = write_photos(tmp_path / "photos")
    places = [str(photos), str(tmp_path / "run"), str(tmp_path / "cache")]
    main, other = finish(start(["-c", RUN, *places, "8"], 2))
    assert other[0] == -signal.SIGKILL
    assert main[0] not in (0, -signal.SIGKILL)
    assert "lost the others" in main[2].strip().splitlines()[-1]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {
        "step-3",
        "step-6",
    }
    for output in ("run", "whole"):
        places[1] = str(tmp_path / output)
        outcomes = finish(start(["-c", RUN, *places], 2))
        assert [code for code, _, _ in outcomes] == [0, 0], outcomes
    assert json.loads((tmp_path / "run" / "run.json").read_text())["resumed_at_step"] == 6
    run, whole = ((tmp_path / p / "delta.safetensors").read_bytes() for p in ("run", "whole"))
    assert run == whole
