"""`smidgen verify` from a base to its report, on the base that ships and on files as released."""

import json

import pytest

from smidgen.models.dit_weights import write_original_pt
from smidgen.verification import run
from smidgen.verification.check import Check
from tests.cli.test_misuse import assert_refused
from tests.tiny.networks import dit
from tests.tiny.pipelines import TINY_PIPELINES
from tests.verification.test_stock import CONFIG

FEW = ("--num-images", 20, "--batch-size", 20)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return TINY_PIPELINES["sd"].save(tmp_path_factory.mktemp("pipelines") / "pipeline")


def by_name(document):
    return {check["name"]: check for check in document["checks"]}


@pytest.mark.slow
def test_the_shipped_base_is_verified_end_to_end(smidgen, tmp_path):
    outcome = smidgen("verify", "glyphs", *FEW, "--output", tmp_path / "out", "--json")
    assert outcome.code == 0
    document = outcome.document
    assert document == json.loads((tmp_path / "out" / "verify.json").read_text())
    checks = by_name(document)
    assert list(checks) == ["files", "forward", "training", "published"]
    assert checks["forward"]["status"] == checks["training"]["status"] == "pass"
    # twenty images are too few for a verdict, and measured all the same
    assert checks["published"]["status"] == "not possible"
    assert "512 at least" in checks["published"]["found"]
    protocol = checks["published"]["facts"]["protocol"]
    assert protocol["sampling"]["guidance"] == 1.5
    assert protocol["sampling"]["steps"] == 50
    assert protocol["sampling"]["sampler"] == "ddpm"
    assert set(checks["published"]["facts"]["metrics"]) == {"fd", "fd_infinity"}
    assert document["verdict"] == "incomplete"
    assert document["machine"]["versions"]["torch"]
    assert len(document["date"]) == 10
    page = (tmp_path / "out" / "verify.md").read_text()
    assert "glyphs" in page
    assert document["machine"]["versions"]["torch"] in page


def test_released_weights_of_a_dit_are_verified(smidgen, tmp_path):
    write_original_pt(dit(CONFIG), tmp_path / "dit.pt")
    given = ("--codec", "glyphs", "--output", tmp_path / "out", "--json")
    # of a width outside the family the file does not tell the heads; config.json beside it does
    (tmp_path / "config.json").write_text(json.dumps({"dit": {"num_heads": CONFIG.num_heads}}))
    outcome = smidgen("verify", tmp_path / "dit.pt", *given)
    assert outcome.code == 0
    checks = by_name(outcome.document)
    assert {name: check["status"] for name, check in checks.items()} == {
        "files": "not possible",
        "forward": "pass",
        "training": "pass",
        "published": "not possible",
    }
    assert "no published number" in checks["published"]["found"]
    assert "dit.pt" in checks["files"]["facts"]["files"]


@pytest.mark.slow
def test_a_pipeline_is_verified_once(smidgen, pipeline, tmp_path):
    given = ("verify", pipeline, "--checks", "forward,training", "--output", tmp_path / "out")
    outcome = smidgen(*given)
    assert outcome.code == 0
    printed = outcome.out.splitlines()
    assert printed[-1] == str(tmp_path / "out" / "verify.md")
    assert [line.split()[1] for line in printed[:2]] == ["pass", "pass"]
    again = smidgen(*given)
    assert again.out == outcome.out
    assert "already holds" in again.err
    others = smidgen(*given[:3], "training", *given[4:])
    assert_refused(others, "checks", "--force", codes=(2,))
    assert smidgen(*given[:3], "training", *given[4:], "--force").code == 0


def test_a_check_that_fails_ends_with_one_line_and_leaves_its_report(
    smidgen, pipeline, tmp_path, monkeypatch
):
    wrong = Check(name="forward", status="fail", found="outputs differ by 3")
    monkeypatch.setattr(run, "check_forward", lambda base: wrong)
    outcome = smidgen("verify", pipeline, "--checks", "forward", "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "forward failed" in outcome.complaint[-1]
    assert "outputs differ by 3" in (tmp_path / "out" / "verify.md").read_text()


def test_a_dry_run_leaves_nothing(smidgen, tmp_path):
    outcome = smidgen("verify", "glyphs", "--output", tmp_path / "out", "--dry-run")
    assert outcome.code == 0
    assert 'checks = "all"' in outcome.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "missing base"),
        (("DiT-XL/2",), "an architecture without weights"),
        (("none.pt",), 'no base "none.pt"'),
        (("glyphs", "--checks", "forwards"), 'unknown check "forwards"'),
        (("glyphs", "--reference", "none.npz"), "no such file or folder: none.npz"),
        (("glyphs", "--num-images", "0"), "num_images is 0"),
    ],
)
def test_misuse_is_refused_in_one_line(smidgen, arguments, said):
    assert_refused(smidgen("verify", *arguments), said, codes=(2,))
