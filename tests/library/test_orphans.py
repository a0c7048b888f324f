"""How deltas stand to a new version of their base, and that the commands for orphans work."""

import dataclasses
import shlex

import pytest

import smidgen
from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.library.orphans import fits_of
from tests.cli.conftest import train_arguments, write_base
from tests.serving.serving import fitting
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


def test_a_delta_fits_is_an_orphan_or_lost(tmp_path):
    base = tiny_base()
    for name, made in {
        "mine": base,
        "older": tiny_base(1),
        "wider": tiny_base(width=24),
    }.items():
        fitting(made, "difffit").save(tmp_path / f"{name}.safetensors")
    fitting(tiny_base(1), "full").save(tmp_path / "whole.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    found = {one["name"]: one for one in smidgen.orphans(base, tmp_path)}
    assert {name: one["verdict"] for name, one in found.items()} == {
        "broken": "unreadable",
        "mine": "fits",
        "older": "orphan",
        "whole": "lost",
        "wider": "lost",
    }
    assert found["mine"]["reason"] is found["mine"]["command"] is None
    assert found["older"]["base"] == "tiny-1"
    assert found["older"]["reason"] == "other weights in the denoiser"
    assert found["wider"]["reason"] == "other shapes in the denoiser"
    assert "copies of the other base's weights" in found["whole"]["reason"]
    assert "--data DATA --method difffit" in found["older"]["command"]
    assert found["wider"]["command"] is None


def test_other_text_encoders_make_an_orphan_too(tmp_path):
    base = tiny_base()
    delta = fitting(base, "lora")
    edits = {name: edit for name, edit in delta.edits.items() if name != "label_table"}
    for edit in edits.values():
        edit.component = "text_encoder"
    known = dataclasses.replace(
        delta.provenance, classes=(), components={"text_encoder": tiny_base(1).fingerprint}
    )
    Delta(edits, known).save(tmp_path / "a.safetensors")
    (found,) = fits_of(base, [("a", tmp_path / "a.safetensors")])
    assert found.verdict == "lost"  # a base without such an encoder
    assert found.reason == "other shapes in the text_encoder"


def test_the_command_trains_an_orphan_again(tmp_path, capsys):
    base, other = (write_base(tmp_path / f"base-{seed}", seed) for seed in (0, 1))
    photos = write_photos(tmp_path / "photos", ("dog", "elk"), per_class=4)
    assert main(train_arguments(base, photos, tmp_path / "runs" / "a run")) == 0
    capsys.readouterr()
    assert main(["orphans", str(other), "--deltas", str(tmp_path / "runs")]) == 0
    head, row, _, told, command = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "verdict", "method", "base", "reason"]
    assert row.startswith("a run  orphan   difffit")
    assert told == "train again:"
    words = shlex.split(command)
    assert words[:2] == ["smidgen", "train"]
    assert main(words[1:]) == 0
    again = tmp_path / "runs" / "a run-base-1" / "delta.safetensors"
    origin = Delta.load(again).provenance.training["init_base"]
    assert origin["name"] == str(base)
    capsys.readouterr()
    assert main(["orphans", str(other), "--deltas", str(again), "--json"]) == 0
    assert '"verdict": "fits"' in capsys.readouterr().out


def test_a_command_without_a_recipe_has_the_methods_options(tmp_path, capsys):
    base, other = (write_base(tmp_path / f"base-{seed}", seed) for seed in (0, 1))
    photos = write_photos(tmp_path / "photos", ("dog", "elk"), per_class=4)
    method = ["--method", "lora+bitfit", "--lora.rank", "2"]
    assert main(train_arguments(base, photos, tmp_path / "run", *method)) == 0
    plain = tmp_path / "greek.safetensors"
    (tmp_path / "run" / "delta.safetensors").rename(plain)
    (found,) = smidgen.orphans(other, plain)
    words = shlex.split(found["command"])
    words[words.index("DATA")] = str(photos)
    few = ["--steps", "1", "--batch-size", "2", "--validation-share", "0", "--trackers"]
    capsys.readouterr()
    assert main([*words[1:], *few]) == 0, capsys.readouterr().err
    assert (tmp_path / "greek-base-1" / "delta.safetensors").is_file()
