"""`smidgen train-many` on the shipped base."""

import json

import pytest

from smidgen.cli.main import main
from tests.tiny.images import write_photos


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))
    for name, classes in (("pets", ("bee", "dog")), ("farm", ("cow",))):
        write_photos(tmp_path / "sets" / name, classes, per_class=4)
    return tmp_path / "sets"


def flags(data, tmp_path):
    short = ["--steps", "2", "--batch-size", "2", "--validation-share", "0", "--trackers"]
    return [
        "train-many",
        "--base",
        "glyphs",
        "--data",
        str(data),
        *short,
        "--output",
        str(tmp_path / "out"),
    ]


def test_each_folder_gets_its_delta_and_a_bad_one_is_named(data, tmp_path, capsys):
    (data / "empty").mkdir()
    assert main([*flags(data, tmp_path), "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["farm"]["classes"] == ["cow"]
    assert (tmp_path / "out" / "pets" / "delta.safetensors").is_file()
    assert "1 of 3 deltas were not trained, first empty" in captured.err
    (data / "empty").rmdir()
    assert main(flags(data, tmp_path)) == 0
    assert "pets: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--together", "0"], "together"), (["--time", "--dry-run"], "one training")],
)
def test_what_makes_no_sense(data, tmp_path, capsys, more, message):
    assert main([*flags(data, tmp_path), *more]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_names_the_sets(data, tmp_path, capsys):
    assert main([*flags(data, tmp_path), "--dry-run"]) == 0
    assert "# sets: farm, pets" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
