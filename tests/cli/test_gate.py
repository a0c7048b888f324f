"""`smidgen gate` and `smidgen orphans` as commands."""

import json

import pytest

from tests.library.results import write_run

GOOD = {"class_agreement": 0.9, "fd": 12.0}


def test_a_table_and_what_is_refused(smidgen, tmp_path):
    write_run(tmp_path / "greek", GOOD)
    write_run(tmp_path / "thai", {"class_agreement": 0.5, "fd": 12.0})
    write_run(tmp_path / "new")
    outcome = smidgen("gate", tmp_path, "--require", "class_agreement=0.8", "fd=20")
    missing = "there is no result.json; evaluate it first (smidgen evaluate)"
    assert outcome.code == 1
    assert outcome.out.splitlines() == [
        "delta  gate     class_agreement  fd     why",
        "greek  passed   90.0%            12.00",
        f"new    refused                          {missing}",
        "thai   refused  50.0%            12.00  class_agreement is 50.0%; expected at least 80.0%",
    ]
    assert outcome.complaint[-1] == "smidgen: 2 of 3 deltas are refused: new, thai"
    passed = smidgen("gate", tmp_path / "greek", "--require", "fd=20", "--json")
    assert passed.code == 0
    assert passed.document["greek"]["checks"][0]["worst"] == 12.0
    assert json.loads((tmp_path / "greek" / "gate.json").read_text()) == passed.document["greek"]


def test_a_dry_run_writes_nothing(smidgen, tmp_path):
    write_run(tmp_path / "greek", GOOD)
    outcome = smidgen("gate", tmp_path, "--require", "fd=20", "--dry-run")
    assert outcome.code == 0
    assert "# judged: greek" in outcome.out
    assert not (tmp_path / "greek" / "gate.json").exists()
    outcome = smidgen("orphans", "glyphs", "--deltas", tmp_path, "--dry-run")
    assert "# compared: greek" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gate"], "missing deltas"),
        (["gate", "nowhere", "--require", "fd=1"], "no such file or folder"),
        (["gate", "."], "nothing is required"),
        (["gate", ".", "--require", "fid=1"], 'the metric "fid"; did you mean "fd"'),
        (["gate", ".", "--most-copied", "0.1", "--data", "nowhere"], "no such folder of images"),
        (["gate", ".", "--require", "fd=1", "--steps", "9"], "steps is of the search for copies"),
        (
            ["gate", ".", "--require", "fd=1", "--base", "glyphs"],
            "base is of the search for copies",
        ),
        (["gate", ".", "--most-copied", "0.1", "--edits", "base"], 'unknown flag "--edits"'),
        (["orphans", "glyphs"], "missing --deltas"),
        (["orphans", "glyphs", "--deltas", "nowhere"], "no such file or folder"),
        (["orphans", "nowhere", "--deltas", "."], 'no base "nowhere"'),
    ],
)
def test_misuse(smidgen, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    outcome = smidgen(*arguments)
    assert outcome.code == 2
    assert message in outcome.complaint[-1]
