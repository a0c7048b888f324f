"""kill -9 at a random moment, the same command again: bit-equal to a run that nobody killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from smidgen import api
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "steps": 300,
    "batch_size": 4,
    "checkpoint_every": 5,
    "keep_checkpoints": 3,
    "trackers": (),
    "num_threads": 1,
}
PROGRAM = f"""
import sys
from smidgen import api
from tests.tiny.bases import tiny_base
api.train(tiny_base(), sys.argv[1], output=sys.argv[2], cache_dir=sys.argv[3], progress=False,
          flip=True, **{SETTINGS!r})
"""


def train(tmp_path, output):
    return api.train(
        tiny_base(),
        tmp_path / "photos",
        output=tmp_path / output,
        cache_dir=tmp_path / "cache",
        flip=True,
        progress=False,
        **SETTINGS,
    )


def checkpoints(folder):
    return [path for path in folder.glob("checkpoints/step-*") if path.suffix != ".partial"]


def test_a_killed_run_goes_on_and_ends_bit_equal(tmp_path):
    photos = write_photos(tmp_path / "photos")
    train(tmp_path, "whole")
    run = tmp_path / "killed"
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(photos), str(run), str(tmp_path / "cache")],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=ROOT,
    )
    try:
        deadline = time.monotonic() + 120
        while not checkpoints(run) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        delay = random.uniform(0, 0.5)
        time.sleep(delay)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL, "the child ended before it could be killed"

    train(tmp_path, "killed")
    report = json.loads((run / "run.json").read_text())
    assert 0 < report["resumed_at_step"] < SETTINGS["steps"]
    files = ["delta.safetensors", *(f"deltas/{p.name}" for p in (run / "deltas").iterdir())]
    assert len(files) > 3
    for name in files:
        whole, resumed = ((tmp_path / part / name).read_bytes() for part in ("whole", "killed"))
        assert whole == resumed, f"{name} differs after a kill {delay:.3f} s after a checkpoint"
    assert not list(run.rglob("*.partial"))
