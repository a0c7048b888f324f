"""kill -9 in the middle of a step, then the same again: bit-equal to a run that nobody killed."""

import json
import signal

import pytest

from smidgen import api
from tests.launch import finish, start
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos

SETTINGS = {
    "steps": 16,
    "batch_size": 4,
    "checkpoint_every": 5,
    "keep_checkpoints": 3,
    "flip": True,
    "trackers": (),
    "num_threads": 1,
    "progress": False,
}
# the network is called once a step: three after the second checkpoint
PROGRAM = f"""
import itertools, os, signal, sys
from smidgen import api
from tests.tiny.bases import tiny_base

base, calls = tiny_base(), itertools.count(1)

def kill(*_):
    if next(calls) == 13:
        os.kill(os.getpid(), signal.SIGKILL)

base.denoiser.register_forward_hook(kill)
api.train(base, sys.argv[1], output=sys.argv[2], cache_dir=sys.argv[3], **{SETTINGS!r})
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_bit_equal(tmp_path):
    photos, cache = write_photos(tmp_path / "photos"), tmp_path / "cache"
    whole, run = tmp_path / "whole", tmp_path / "killed"
    api.train(tiny_base(), photos, output=whole, cache_dir=cache, **SETTINGS)
    places = [str(path) for path in (photos, run, cache)]
    ((code, _, error),) = finish(start(["-c", PROGRAM, *places], 1))
    assert code == -signal.SIGKILL, error

    api.train(tiny_base(), photos, output=run, cache_dir=cache, **SETTINGS)
    assert json.loads((run / "run.json").read_text())["resumed_at_step"] == 10
    files = ["delta.safetensors", *(f"deltas/{p.name}" for p in (whole / "deltas").iterdir())]
    assert len(files) > 3
    for name in files:
        assert (whole / name).read_bytes() == (run / name).read_bytes(), name
    assert not list(run.rglob("*.partial"))
