"""The precision of a training that leaves it to the machine: chosen, recorded and kept."""

import json
import tomllib

import pytest
import torch
from torch import nn

import smidgen
from smidgen.core.delta import Delta
from smidgen.core.storage import narrow
from smidgen.errors import UsageError
from smidgen.models.dit import DiT, preset
from smidgen.training import precision
from smidgen.training.precision import fast_precision
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHORT = {"batch_size": 4, "checkpoint_every": 2, "trackers": (), "progress": False}
PIXELS = 32 * 32


@pytest.fixture(scope="module")
def small():
    with torch.device("meta"):
        return DiT(preset("DiT-S/2"))


@pytest.fixture
def amx(monkeypatch):
    monkeypatch.setattr(precision, "has_amx", lambda: True)


def machine_says(monkeypatch, word):
    monkeypatch.setattr(precision, "fast_precision", lambda *given: word)


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


def train(photos, output, steps=2, **settings):
    places = {"output": output, "cache_dir": photos.parent / "cache"}
    return smidgen.train(tiny_base(), photos, steps=steps, **(SHORT | places | settings))


def recorded(run):
    """In the recipe, in the delta and in the report."""
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    delta = Delta.load(run / "delta.safetensors").provenance.training["settings"]
    report = json.loads((run / "run.json").read_text())
    return [each["precision"] for each in (recipe, delta, report)]


def test_a_cpu_takes_bf16_only_with_amx(monkeypatch, small):
    for has, word in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(precision, "has_amx", lambda has=has: has)
        assert fast_precision(small, PIXELS, CPU) == word


@pytest.mark.parametrize(
    ("here", "computes", "word"),
    [(True, True, "bf16"), (True, False, "fp32"), (False, False, "bf16")],
)
def test_a_gpu_takes_bf16_where_it_computes_in_it_or_is_elsewhere(
    monkeypatch, small, here, computes, word
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **given: computes)
    assert fast_precision(small, PIXELS, CUDA) == word


def test_what_is_too_small_to_gain_stays_in_float32(amx, small):
    assert fast_precision(small, PIXELS // 16, CPU) == "fp32"
    assert fast_precision(tiny_base().denoiser, PIXELS, CPU) == "fp32"


def test_a_network_of_convolutions_stays_in_float32(amx):
    with torch.device("meta"):
        mixed = nn.Sequential(nn.Linear(512, 512), nn.Conv2d(512, 512, 1))
    assert fast_precision(mixed, 100 * PIXELS, CPU) == "fp32"
    assert fast_precision(mixed[:1], 100 * PIXELS, CPU) == "bf16"


def test_a_base_that_computes_in_another_precision_stays_in_it(amx):
    network = nn.Sequential(nn.Linear(512, 512))
    narrow(network, torch.bfloat16)  # kept so, and computing in float32
    assert fast_precision(network, 100 * PIXELS, CPU) == "bf16"
    assert fast_precision(nn.Sequential(nn.Linear(512, 512)).half(), 100 * PIXELS, CPU) == "fp32"


@pytest.mark.parametrize("word", ["fp32", "bf16"])
def test_auto_trains_and_is_recorded_as_what_it_is_there(monkeypatch, photos, tmp_path, word):
    machine_says(monkeypatch, word)
    train(photos, tmp_path / "auto")
    train(photos, tmp_path / "named", precision=word)
    assert recorded(tmp_path / "auto") == [word] * 3
    names = ("auto", "named")
    auto, named = ((tmp_path / name / "delta.safetensors").read_bytes() for name in names)
    assert auto == named


def test_a_run_goes_on_in_its_precision_on_any_machine(monkeypatch, photos, tmp_path):
    machine_says(monkeypatch, "bf16")
    train(photos, tmp_path / "run")
    train(photos, tmp_path / "whole", steps=4)
    machine_says(monkeypatch, "fp32")
    train(photos, tmp_path / "run")  # is finished
    train(photos, tmp_path / "run", steps=4)
    assert recorded(tmp_path / "run") == ["bf16"] * 3
    run, whole = (tmp_path / name / "delta.safetensors" for name in ("run", "whole"))
    assert run.read_bytes() == whole.read_bytes()


def test_a_precision_by_name_is_compared_with_what_auto_was(monkeypatch, photos, tmp_path):
    machine_says(monkeypatch, "bf16")
    train(photos, tmp_path / "run")
    train(photos, tmp_path / "run", precision="bf16")
    with pytest.raises(UsageError, match='precision "bf16" -> "fp32"'):
        train(photos, tmp_path / "run", precision="fp32")
    machine_says(monkeypatch, "fp32")
    train(photos, tmp_path / "run", force=True)  # is a new run
    assert recorded(tmp_path / "run") == ["fp32"] * 3


def test_one_line_says_what_auto_is(monkeypatch, photos, tmp_path, caplog):
    machine_says(monkeypatch, "bf16")
    with caplog.at_level("INFO", logger="smidgen"):
        train(photos, tmp_path / "auto")
        train(photos, tmp_path / "named", precision="bf16")
    said = [message for message in caplog.messages if "precision" in message]
    assert said == ['precision "auto" is bf16 in this run']


def test_the_memory_of_auto_is_that_of_what_it_is(monkeypatch):
    counted, many = {}, 256  # images, beside which the weights in bf16 are little
    for word in ("fp32", "bf16"):
        machine_says(monkeypatch, word)
        counted[word] = smidgen.inspect(tiny_base(), batch_size=many)["memory"]["step"]
        named = smidgen.inspect(tiny_base(), batch_size=many, precision=word)["memory"]["step"]
        assert counted[word] == named
    assert counted["bf16"] < counted["fp32"]
