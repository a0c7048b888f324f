"""Trainings whose processes have a part each of the base's weights: over gloo, on the CPU, where
they give the bits of processes that have all of them.
"""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

import smidgen
from smidgen import processes
from smidgen.api.planning import plan_run
from smidgen.core.delta import Delta
from smidgen.core.sharding import group_of, part_bytes
from smidgen.core.storage import outside
from smidgen.errors import UsageError
from smidgen.fast.acting import takes_fast_path
from smidgen.models.placing import check_same, place
from smidgen.models.pretrained import load_base
from smidgen.training import class_images, loop, previews
from smidgen.training.config import RunConfig, TrainingConfig
from tests.launch import finish, start
from tests.tiny.bases import tiny_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.images import write_folder, write_photos
from tests.tiny.pipelines import TINY_PIPELINES

SETTINGS = {
    "batch_size": 5,  # the 64 draws of a validation are 13 batches
    "checkpoint_every": 2,
    "sample_every": 2,
    "lr": 0.01,
    "trackers": (),
    "progress": False,
    "gradient_checkpointing": True,
}
OF_CLASSES = {"validation_share": 0.25, "metrics_every": 2, "metrics_features": "glyphs"}
OWL = {"task": "dreambooth", "token": "sks", "class_name": "owl", "class_images": 5}
WAYS = {"whole": False, "parts": True}
WORKER = """
import sys
from tests.training.test_shard import train_both_ways
train_both_ways(*sys.argv[1:])
"""


def train_dit(root, way, steps):
    """On classes; a network with parts of its weights goes by hooks."""
    base = tiny_base()
    place(base.denoiser, "cpu", shard=WAYS[way])
    places = {"output": root / way / "dit", "cache_dir": root / way}
    settings = SETTINGS | OF_CLASSES | places | {"steps": steps, "fast": False}
    smidgen.train(base, root / "photos", **settings)
    return base


def train_unet(root, way, pipeline):
    """On a subject, with images of its class that the base draws; in 8 bit."""
    base = load_base(pipeline, base_precision="int8", shard=WAYS[way])
    places = {"output": root / way / "unet", "cache_dir": root / way}
    settings = SETTINGS | OWL | places | {"steps": 2, "batch_size": 1, "method": "lora"}
    smidgen.train(base, root / "owls" / "owl", **settings)
    return base


def train_both_ways(root, pipeline):
    """In one of two processes: with all weights, and with a part of them, which is stopped and
    goes on. What is drawn and validated are odd numbers of batches: the second process has fewer.
    """
    root = Path(root)
    previews.STEPS, previews.BATCH, previews.METRIC_IMAGES, previews.GRID_IMAGES = 2, 2, 5, 3
    class_images.STEPS, class_images.PIXELS = 2, 2 * 16**2
    train_dit(root, "whole", 4)
    train_dit(root, "parts", 2)
    dit = train_dit(root, "parts", 4)
    unet = [train_unet(root, way, pipeline) for way in WAYS][-1]
    facts = {
        "whole": [sum(outside(base.denoiser)) for base in (dit, unet)],
        "part": [part_bytes(base.denoiser) for base in (dit, unet)],
        "group": [group_of(base.denoiser)[:2] for base in (dit, unet)],
        "fast": takes_fast_path(tiny_delta(dit, "difffit"), dit.denoiser),
        "refusals": [
            refusal(check_same, "tiny", f"sketch of {processes.rank()}"),
            refusal(smidgen.train, dit, root / "photos", output=root / "no", method="full"),
            refusal(smidgen.train, dit, root / "photos", output=root / "no", compile=True),
        ],
    }
    (root / f"{processes.rank()}.json").write_text(json.dumps(facts))
    if processes.rank() == 1:  # is gone without a word in its next step
        loop.update_average = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    train_dit(root, "parts", 6)


def refusal(work, *arguments, **settings):
    try:
        work(*arguments, **settings)
    except UsageError as error:
        return str(error)
    return None


def log_of(run):
    """What was logged, but for how long it took."""
    lines = [json.loads(line) for line in (run / "log.jsonl").open()]
    return [{name: v for name, v in line.items() if "second" not in name} for line in lines]


@pytest.mark.slow
def test_two_processes_with_parts_train_the_bits_of_two_with_all_weights(tmp_path):
    pipeline = TINY_PIPELINES["sd"].save(tmp_path / "sd")
    write_photos(tmp_path / "photos")
    write_folder(tmp_path / "owls", classes=("owl",), per_class=4)
    main, other = finish(start(["-c", WORKER, str(tmp_path), str(pipeline)], 2))
    assert other[0] == -signal.SIGKILL, other
    assert main[0] not in (0, -signal.SIGKILL)
    assert "lost the others" in main[2].strip().splitlines()[-1]
    for name in ("dit", "unet"):
        whole, parts = (tmp_path / way / name for way in WAYS)
        expected, found = (
            Delta.load(run / "delta.safetensors").state_dict() for run in (whole, parts)
        )
        assert list(found) == list(expected)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert log_of(parts)[: len(log_of(whole))] == log_of(whole)
        grids = [
            {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
            for run in (whole, parts)
        ]
        assert grids[0] == grids[1]
        assert "step-2.png" in grids[0]
    assert {"kid", "validation_loss"} < set().union(*log_of(tmp_path / "parts" / "dit"))
    drawn = [[path.read_bytes() for path in (tmp_path / way).rglob("0*.png")] for way in WAYS]
    assert sorted(drawn[0]) == sorted(drawn[1])
    assert len(drawn[0]) == 5
    for rank in (0, 1):
        facts = json.loads((tmp_path / f"{rank}.json").read_text())
        for whole, part in zip(facts["whole"], facts["part"], strict=True):
            assert whole / 2 <= part < 1.01 * whole / 2
        assert facts["group"] == [[rank, 2], [rank, 2]]
        assert facts["fast"] is False
        different, full, compiled = facts["refusals"]
        assert "other weights in some of the 2 processes" in different
        assert "shard is of no use to full" in full
        assert "compile and shard do not go together" in compiled


def test_what_cannot_be_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    one = r"gives each of several processes .*torchrun .* or leave it out"
    config = RunConfig(data=tmp_path, output=tmp_path / "run").resolved()
    with pytest.raises(UsageError, match=one):
        load_base(tmp_path, shard=True)
    with pytest.raises(UsageError, match=one):
        plan_run("DiT-S/2", config, given={}, shard=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for given in ({"device": "meta", "shard": True}, {"device": "cpu", "num_shards": 2}):
        call = load_base if "shard" in given else smidgen.inspect
        with pytest.raises(UsageError, match="offload and shard do not go together"):
            call(tmp_path if call is load_base else "DiT-S/2", offload=True, **given)
    with pytest.raises(UsageError, match="num_shards is 0"):
        smidgen.inspect("DiT-S/2", num_shards=0)


@pytest.mark.slow
def test_the_estimate_has_a_part_of_each_weight_and_one_whole(monkeypatch, tmp_path):
    settings = {"method": "lora", "batch_size": 1, "device": "cuda", "base_precision": "int8"}
    here = smidgen.inspect("DiT-S/2", **settings)["memory"]
    there = smidgen.inspect("DiT-S/2", num_shards=4, **settings)["memory"]
    blocks = 12 * (4 + 6 + 8) * 384**2  # attention, modulation, feed-forward
    largest = 6 * 384**2
    assert there["in_others"] == blocks * 3 // 4
    assert there["weights"] == here["weights"] - there["in_others"] + largest
    assert "in_others" not in here
    assert "offloaded" not in there
    # each is brought in before it is widened
    assert here["step"] <= there["step"] <= here["step"] + 2 * largest
    assert there["total"] == sum(
        there[part] for part in ("weights", "delta", "optimizer", "average", "step")
    )
    # a dry run counts for the processes that it is told of
    write_photos(tmp_path / "photos")
    monkeypatch.setenv("WORLD_SIZE", "4")
    training = TrainingConfig(batch_size=1)
    config = RunConfig(
        data=tmp_path / "photos", output=tmp_path / "run", method="lora", training=training
    ).resolved()
    given = {"base_precision": "int8"}
    planned = plan_run("DiT-S/2", config, given=given, device="cuda", shard=True)
    assert planned["memory"]["in_others"] == there["in_others"]
