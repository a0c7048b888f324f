"""A training whose products with frozen weights are in 8 bit: measured, recorded, kept, refused."""

import json

import pytest
import torch

import smidgen
from smidgen.errors import UsageError
from smidgen.fast import eight_bit
from smidgen.training import frozen
from smidgen.training.config import TrainingConfig
from smidgen.training.frozen import MOST
from tests.tiny.bases import base_of, tiny_base
from tests.tiny.hosts import TINY_HOSTS
from tests.tiny.images import write_photos
from tests.training.test_loop import read_log

SHORT = {"batch_size": 4, "checkpoint_every": 2, "trackers": (), "progress": False}


@pytest.fixture(autouse=True)
def _instructions(monkeypatch):
    monkeypatch.setattr(eight_bit, "has_int8", lambda: True)


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def train(photos, output, products, base=None, steps=2, **settings):
    places = {"output": output, "cache_dir": photos.parent / "cache", "precision": "fp32"}
    settings = SHORT | places | {"frozen_precision": products} | settings
    return smidgen.train(base or tiny_base(), photos, steps=steps, **settings)


def with_outliers():
    """Half of the channels of a hidden layer are a thousandth of the others, and count as much."""
    base = tiny_base()
    with torch.no_grad():
        for block in base.denoiser.blocks:
            half = block.mlp.fc1.out_features // 2
            block.mlp.fc1.weight[:half] /= 1000
            block.mlp.fc1.bias[:half] /= 1000
            block.mlp.fc2.weight[:, :half] *= 1000
    return base


def first_loss(run):
    return next(line["loss"] for line in read_log(run) if "loss" in line)


def report(run):
    return json.loads((run / "run.json").read_text())


def test_backward_alone_has_the_loss_of_exact_products_and_is_measured_once(
    photos, tmp_path, caplog
):
    train(photos, tmp_path / "exact", "exact")
    with caplog.at_level("INFO", logger="smidgen"):
        train(photos, tmp_path / "run", "8bit-backward")
    assert first_loss(tmp_path / "run") == pytest.approx(first_loss(tmp_path / "exact"), rel=1e-6)
    found = report(tmp_path / "run")["frozen_error"]
    assert found["output"] < 1e-6
    assert 0 < found["gradient"] < MOST
    assert sum("products in 8 bit" in message for message in caplog.messages) == 1
    assert "frozen_error" not in report(tmp_path / "exact")


def test_to_measure_changes_nothing_that_is_drawn(photos, tmp_path):
    """The second step sees the images, the noise and the times that it would without."""
    train(photos, tmp_path / "exact", "exact", lr=0.0, steps=4)
    train(photos, tmp_path / "run", "8bit-backward", lr=0.0, steps=4)
    losses = [
        [line["loss"] for line in read_log(tmp_path / name) if "loss" in line]
        for name in ("exact", "run")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("frozen", ["8bit-backward", "8bit"])
def test_a_resumed_run_is_bit_equal_and_keeps_its_products(photos, tmp_path, frozen):
    train(photos, tmp_path / "whole", frozen, steps=4)
    train(photos, tmp_path / "run", frozen)
    with pytest.raises(UsageError, match=f'frozen_precision "{frozen}" -> "exact"'):
        train(photos, tmp_path / "run", "exact", steps=4)
    train(photos, tmp_path / "run", frozen, steps=4)
    run, whole = (tmp_path / name / "delta.safetensors" for name in ("run", "whole"))
    assert run.read_bytes() == whole.read_bytes()


def test_outliers_refuse_the_forward_pass_in_8_bit_and_not_the_backward_pass(photos, tmp_path):
    with pytest.raises(UsageError, match=r"by \d+\.\d%, more than 2%.*give 8bit-backward"):
        train(photos, tmp_path / "both", "8bit", with_outliers())
    assert not (tmp_path / "both" / "checkpoints").exists()
    train(photos, tmp_path / "back", "8bit-backward", with_outliers())


def test_floats_of_8_bit_are_measured_by_the_same_rule(photos, tmp_path, monkeypatch, caplog):
    for module in (eight_bit, frozen):
        monkeypatch.setattr(module, "kind_of", lambda device: eight_bit.FLOAT8)
    with caplog.at_level("INFO", logger="smidgen"):
        train(photos, tmp_path / "whole", "8bit-backward", steps=4)
    train(photos, tmp_path / "run", "8bit-backward")
    train(photos, tmp_path / "run", "8bit-backward", steps=4)
    found = report(tmp_path / "whole")["frozen_error"]
    assert found["output"] < 1e-6
    assert 0.005 < found["gradient"] < 0.05, "3 bits of mantissa"
    run, whole = (tmp_path / name / "delta.safetensors" for name in ("run", "whole"))
    assert run.read_bytes() == whole.read_bytes()
    assert sum("products in 8 bit (float8_e4m3fn)" in one for one in caplog.messages) == 1
    monkeypatch.setattr(frozen, "MOST", 1e-3)
    with pytest.raises(UsageError, match=r"changes the output of this base by .*too coarse for it"):
        train(photos, tmp_path / "both", "8bit")


def test_where_it_is_of_no_use_it_is_refused_by_name(photos, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="frozen_precision 8bit is there on the fast path alone"):
        TrainingConfig(frozen_precision="8bit", fast=False)
    with pytest.raises(UsageError, match="frozen_precision 8bit is of no use to full"):
        train(photos, tmp_path / "run", "8bit", method="full")
    foreign = base_of(TINY_HOSTS["unet"].make(3))
    with pytest.raises(UsageError, match="frozen_precision 8bit is for a DiT of smidgen's own"):
        train(photos, tmp_path / "run", "8bit", foreign)
    watched = tiny_base()
    watched.denoiser.blocks[0].attn.register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match="which cannot serve this base and delta"):
        train(photos, tmp_path / "run", "8bit", watched)
    monkeypatch.setattr(eight_bit, "has_int8", lambda: False)
    with pytest.raises(UsageError, match="needs a CUDA device or a CPU with AVX-512 VNNI or AMX"):
        train(photos, tmp_path / "other", "8bit")
