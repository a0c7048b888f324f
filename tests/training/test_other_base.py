"""Runs that begin from a delta of another version of their base."""

import json

import pytest
import torch
from safetensors.torch import save_file

import smidgen
from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.training.config import RunConfig
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos

SHORT = {
    "steps": 4,
    "batch_size": 4,
    "validation_share": 0.0,
    "checkpoint_every": 2,
    "trackers": (),
    "progress": False,
}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    return write_photos(tmp_path / "photos")


def train(photos, output, base=None, **settings):
    return smidgen.train(base or tiny_base(), photos, output=output, **(SHORT | settings))


def test_it_begins_with_the_same_values_and_says_of_which_base(tmp_path, photos):
    first = train(photos, tmp_path / "first")
    start = tmp_path / "first" / "delta.safetensors"
    new = tiny_base(1)
    with pytest.raises(SmidgenError, match=r"are others; .* or init_other_base to begin"):
        train(photos, tmp_path / "new", new, init=start)
    settings = {"init": start, "init_other_base": True}
    begun = train(photos, tmp_path / "new", new, lr=0.0, **settings)
    assert all(map(torch.equal, begun.parameters(), first.parameters()))
    known = begun.provenance
    assert known.fingerprint == new.fingerprint
    origin = {"name": "tiny-0", "fingerprint": tiny_base().fingerprint}
    assert known.training["init_base"] == origin
    # what begins from that one begins on its own base
    second = train(photos, tmp_path / "second", new, init=tmp_path / "new" / "delta.safetensors")
    assert "init_base" not in second.provenance.training


def test_it_goes_on_to_the_same_bytes_without_its_start(tmp_path, photos):
    train(photos, tmp_path / "first")
    start = tmp_path / "first" / "delta.safetensors"
    settings = {"base": tiny_base(1), "init": start, "init_other_base": True}
    train(photos, tmp_path / "whole", steps=6, **settings)
    train(photos, tmp_path / "run", steps=2, **settings)
    start.unlink()
    train(photos, tmp_path / "run", steps=6, **settings)
    run, whole = ((tmp_path / name / "delta.safetensors").read_bytes() for name in ("run", "whole"))
    assert run == whole
    assert "init_base" in Delta.load(tmp_path / "run" / "delta.safetensors").provenance.training


@pytest.mark.parametrize(
    ("method", "base", "message"),
    [
        ("difffit", {"width": 24}, "differ in the shapes of their weights"),
        ("full", {"seed": 1}, "it holds copies of the other base's weights"),
    ],
)
def test_what_cannot_begin_elsewhere_is_refused(tmp_path, photos, method, base, message):
    train(photos, tmp_path / "first", method=method)
    settings = {"method": method, "init": tmp_path / "first" / "delta.safetensors"}
    with pytest.raises(UsageError, match=message):
        train(photos, tmp_path / "new", tiny_base(**base), init_other_base=True, **settings)
    with pytest.raises(SmidgenError, match=r"give the base that it was made for$"):
        train(photos, tmp_path / "new", tiny_base(**base), **settings)


def test_it_is_about_deltas_of_smidgen(tmp_path, photos, capsys):
    lora = tmp_path / "lora.safetensors"
    save_file({"unet.to_q.lora_A.weight": torch.zeros(2, 4)}, lora)
    arguments = ["--init", lora, "--init-other-base", "--method", "lora", "--dry-run"]
    places = ["--base", "glyphs", "--data", photos, "--output", tmp_path / "run"]
    main(["train", *map(str, (*places, *arguments)), "--json"])
    assert "init_other_base is about a delta, and" in json.loads(capsys.readouterr().out)["refusal"]


def test_it_is_about_a_start(tmp_path):
    with pytest.raises(UsageError, match="init_other_base is about init"):
        RunConfig(data=tmp_path, output=tmp_path / "run", init_other_base=True)
