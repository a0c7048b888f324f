"""`smidgen explain`: pictures of what a run learned, and how it is refused."""

import pytest

SHORT = ["--num-images", "1", "--times", "2", "--steps", "2"]


@pytest.mark.slow
def test_a_run_is_explained_once_and_again_only_when_asked(smidgen, base, trained, tmp_path):
    output = tmp_path / "out"
    arguments = ["explain", trained.parent, *SHORT, "--output", output]
    outcome = smidgen(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    (look,) = outcome.document["deltas"]  # the base knows no dog
    assert look["shown"] == "dog"
    assert sorted(path.name for path in output.iterdir()) == [
        "differences.png",
        "differences.svg",
        "edits.png",
        "edits.svg",
        "explain.json",
    ]
    (output / "edits.png").unlink()
    again = smidgen(*arguments)
    assert f"{output} holds these pictures already" in again.err
    assert again.out.splitlines()[-1] == str(output)
    assert not (output / "edits.png").exists()
    changed = smidgen(*arguments, "--seed", "1")
    assert changed.code == 2
    assert "holds pictures of other settings (seed 0 -> 1)" in changed.err
    assert smidgen(*arguments, "--force").code == 0
    assert (output / "edits.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing runs, --output"),
        (["nowhere", "--output", "out"], "no such run or delta: nowhere"),
        (["{photos}", "--output", "out"], "holds images; give a run's folder or a delta's file"),
        (["{trained}", "--output", "out", "--times", "0"], "times is 0; expected an integer"),
        (["{trained}", "{trained}", "--output", "out"], "a run is given twice"),
        (["{trained}", "--output", "out", "--word", "owl"], "word is of no use to base"),
    ],
)
def test_misuse_is_one_line(smidgen, photos, trained, tmp_path, monkeypatch, arguments, message):
    places = {"photos": photos, "trained": trained}
    monkeypatch.chdir(tmp_path)
    outcome = smidgen("explain", *(one.format(**places) for one in arguments))
    assert outcome.code == 2
    assert message in outcome.complaint[-1]
    assert not (tmp_path / "out").exists()


def test_a_dry_run_draws_nothing(smidgen, trained, tmp_path):
    outcome = smidgen("explain", trained, "--output", tmp_path / "out", "--dry-run")
    assert outcome.code == 0
    assert "times = 5" in outcome.out
    assert not (tmp_path / "out").exists()
