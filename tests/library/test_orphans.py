"""How deltas stand to a new version of their base, and that the commands for orphans work."""

import dataclasses
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file

import smidgen
from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.library.orphans import fits_of
from smidgen.models.base import base_fingerprint
from tests.cli.conftest import train_arguments, write_base
from tests.serving.serving import fitting
from tests.tiny.bases import tiny_base
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES


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


@pytest.mark.slow
def test_other_text_encoders_make_an_orphan_too(tmp_path, capsys):
    old, new = (TINY_PIPELINES["sd"].save(tmp_path / name) for name in ("old", "new"))
    place = new / "text_encoder" / "model.safetensors"
    weights = load_file(place)
    save_file({name: 1.5 * one for name, one in weights.items()}, place, {"format": "pt"})
    photos = write_photos(tmp_path / "photos", ("owl",), per_class=4)
    word = ["--method", "textual-inversion", "--token", "<owl>", "--init-word", "owl"]
    prompt = ["--prompt", "a photo of <owl> {class}"]
    assert main(train_arguments(old, photos, tmp_path / "run", *word, *prompt)) == 0
    plain = tmp_path / "owl.safetensors"
    (tmp_path / "run" / "delta.safetensors").rename(plain)
    (found,) = smidgen.orphans(new, plain)
    assert (found["verdict"], found["reason"]) == ("orphan", "other weights in the text_encoder")
    assert smidgen.orphans(old, plain)[0]["verdict"] == "fits"

    again = train_arguments(new, photos, tmp_path / "again", *word, *prompt, "--init", str(plain))
    capsys.readouterr()
    assert main(again) == 1
    assert "or init_other_base to begin from it" in capsys.readouterr().err
    words = shlex.split(found["command"])
    assert "<owl>" in words[words.index("--token") :]
    words[words.index("DATA")] = str(photos)
    few = ["--steps", "1", "--batch-size", "2", "--validation-share", "0", "--trackers"]
    assert main([*words[1:], *prompt, *few]) == 0, capsys.readouterr().err
    begun = Delta.load(tmp_path / "owl-new" / "delta.safetensors")
    assert begun.provenance.training["init_base"]["name"] == str(old)
    assert smidgen.orphans(new, tmp_path / "owl-new")[0]["verdict"] == "fits"


def test_the_command_for_a_subject_names_it(tmp_path):
    base = smidgen.load_base(TINY_PIPELINES["sd"].save(tmp_path / "sd"))
    delta = fitting(base, "lora")
    subject = {
        "token": "sks",
        "class_name": "owl",
        "instance_prompt": "a photo of sks owl",
        "class_prompt": "a photo of owl",
    }
    delta.provenance = dataclasses.replace(delta.provenance, training={"dreambooth": subject})
    delta.save(tmp_path / "owl.safetensors")
    with torch.no_grad():
        next(base.denoiser.parameters()).mul_(1.5)
    base.fingerprint = base_fingerprint(base.denoiser)
    (found,) = fits_of(base, [("owl", tmp_path / "owl.safetensors")])
    assert found.verdict == "orphan"
    assert "--task dreambooth --token sks --class-name owl" in (found.command or "")


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
