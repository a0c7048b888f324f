"""What the gate says of a delta, and what it writes."""

import json
from pathlib import Path

import pytest

import smidgen
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.reading import sha256_of
from smidgen.library.config import CopiesConfig, GateConfig
from smidgen.library.files import beside, named
from smidgen.library.gate import judge, row_of
from smidgen.library.record import Copies, Record, refusal
from smidgen.library.requirements import Check
from smidgen.sampling.config import SamplingConfig
from tests.library.results import write_run

GOOD = {"class_agreement": 0.9, "fd": 12.0}


def no_search(path, most):
    raise AssertionError("copies are not asked for")


def judged(path, *require, find=no_search, **settings):
    return judge(path, GateConfig(deltas=(path,), require=require, **settings), find)


def copies(share, reason):
    return Copies(
        num_images=8,
        num_pictures=9,
        copied=int(8 * share),
        share=share,
        share_low=0.0,
        share_high=1.0,
        by_chance=0.1,
        most=0.2,
        distance=1.0,
        passed=reason is None,
        reason=reason,
        protocol={},
    )


def test_one_that_reaches_all_passes_and_is_served_until_its_file_changes(tmp_path):
    path = write_run(tmp_path / "greek", GOOD)
    assert "not been through the gate" in refusal(path, sha256_of(path))
    found = smidgen.gate(tmp_path, require="class_agreement=0.8,fd=20")
    assert found["greek"]["passed"]
    document = json.loads((tmp_path / "greek" / "gate.json").read_text())
    assert document == found["greek"]
    assert document["protocol"]["num_images"] == 480
    assert refusal(path, sha256_of(path)) is None
    assert "another one" in refusal(path, "0" * 64)


def test_the_same_gate_again_writes_the_same_bytes(tmp_path):
    write_run(tmp_path / "greek", GOOD)
    found = []
    for _ in range(2):
        smidgen.gate(tmp_path / "greek", require="fd=20")
        found.append((tmp_path / "greek" / "gate.json").read_bytes())
    assert found[0] == found[1]


def test_one_that_fails_is_refused_with_every_reason(tmp_path):
    path = write_run(tmp_path, GOOD)
    found = judged(path, "class_agreement=0.95", "fd=10", "kid=1")
    assert not found.passed
    assert [reason.split()[0] for reason in found.reasons] == ["class_agreement", "fd", "kid"]
    smidgen.gate(path, require="fd=10")
    assert "the gate refused it: fd is 12.00" in refusal(path, sha256_of(path))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda path: beside(path, "result.json").unlink(), "there is no result.json"),
        (lambda path: beside(path, "result.json").write_text("{"), "cannot read"),
        (lambda path: beside(path, "result.json").write_text("[]"), "cannot read"),
        (lambda path: write_run(path.parent, GOOD, delta_sha256="0"), "of another delta"),
        (lambda path: write_run(path.parent, GOOD, edits="-table"), "a part of it"),
    ],
)
def test_what_its_result_must_be(tmp_path, prepare, message):
    path = write_run(tmp_path, GOOD)
    prepare(path)
    found = judged(path, "fd=20")
    assert not found.passed
    assert message in found.reasons[0]


def test_a_result_of_images_may_be_anothers(tmp_path):
    path = write_run(tmp_path)
    document = {"metrics": GOOD, "protocol": {"features": "glyphs", "sampling": None}}
    beside(path, "result.json").write_text(json.dumps(document))
    assert "images that may be another delta's" in judged(path, "fd=20").reasons[0]


def test_copies_count_beside_numbers_and_what_cannot_be_looked_for_refuses(tmp_path):
    path = write_run(tmp_path, GOOD)
    asked = []

    def find(path, most):
        asked.append(most)
        return copies(0.5, "4 of 8 are copies")

    def lost(path, most):
        raise SmidgenError("its training pictures are not there")

    found = judged(path, "fd=20", find=find, most_copied=0.2)
    assert (found.passed, found.reasons, asked) == (False, ["4 of 8 are copies"], [0.2])
    assert judged(path, find=lambda *_: copies(0.1, None), most_copied=0.2).passed
    assert judged(path, find=lost, most_copied=0.2).reasons == [
        "its training pictures are not there"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "cannot be read"),
        ("[", "cannot be read"),
        ('{"format_version": 9, "delta_sha256": "a", "passed": true}', "a newer smidgen"),
        ('{"delta_sha256": "a", "passed": false, "reasons": ["no"]}', "refused it: no"),
    ],
)
def test_a_record_that_is_none_serves_nothing(tmp_path, content, message):
    path = write_run(tmp_path)
    beside(path, "gate.json").write_text(content)
    assert message in refusal(path, "a")


def test_deltas_are_named_by_their_runs_and_files_each_once(tmp_path):
    run = write_run(tmp_path / "lib" / "greek")
    plain = tmp_path / "lib" / "thai.safetensors"
    run.rename(plain)
    write_run(tmp_path / "lib" / "greek")
    other = write_run(tmp_path / "other" / "greek")
    assert named([tmp_path / "lib", run, run.parent]) == [("thai", plain), ("greek", run)]
    assert dict(named([run, other])) == {str(run): run, str(other): other}
    assert beside(plain, "gate.json").name == "thai.gate.json"
    assert beside(run, "gate.json").name == "gate.json"
    with pytest.raises(UsageError, match="no delta in"):
        named([tmp_path])
    with pytest.raises(UsageError, match="no such file"):
        named([tmp_path / "nowhere"])


def test_a_delta_of_the_folder_where_one_is_has_that_folders_name(tmp_path, monkeypatch):
    run = write_run(tmp_path / "greek")
    monkeypatch.chdir(run.parent)
    assert named([Path("delta.safetensors")]) == [("greek", Path("delta.safetensors"))]


def test_one_metric_of_two_features_has_two_columns(tmp_path):
    checks = [
        Check(
            metric="fd",
            features=features,
            bound=20.0,
            higher_is_better=False,
            value=value,
            passed=value <= 20,
        )
        for features, value in (("glyphs", 30.0), ("clip-b32", 2.0))
    ]
    row = row_of(Record(delta_sha256="a", passed=False, checks=checks))
    assert (row["glyphs:fd"], row["clip-b32:fd"]) == ("30.00", "2.00")


@pytest.mark.parametrize("part", [{"edits": "base"}, {"numbers": (0,)}])
def test_copies_are_looked_for_in_all_that_is_served(tmp_path, part):
    write_run(tmp_path)
    with pytest.raises(UsageError, match="a part of what would be served"):
        smidgen.gate(tmp_path, most_copied=0.5, sampling=SamplingConfig(**part))


def test_what_only_the_search_for_copies_uses_is_refused_without_it(tmp_path):
    write_run(tmp_path, GOOD)
    with pytest.raises(UsageError, match="steps is of the search for copies"):
        smidgen.gate(tmp_path, require="fd=20", sampling=SamplingConfig(steps=9))
    with pytest.raises(UsageError, match="features is of the search for copies"):
        smidgen.gate(tmp_path, require="fd=20", features="glyphs")


def test_what_a_gate_cannot_be_told(tmp_path):
    with pytest.raises(UsageError, match="nothing is required"):
        GateConfig(deltas=(tmp_path,))
    with pytest.raises(UsageError, match="no deltas given"):
        GateConfig(deltas=(), require=("fd=3",))
    with pytest.raises(UsageError, match="most_copied is 2"):
        GateConfig(deltas=(tmp_path,), most_copied=2.0)
    with pytest.raises(UsageError, match="copies are looked for in one kind"):
        CopiesConfig(features="glyphs,clip-glyphs")


def test_a_file_that_is_no_delta_is_refused_and_the_others_are_judged(tmp_path):
    write_run(tmp_path / "greek", GOOD)
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    found = smidgen.gate(tmp_path, require="fd=20")
    assert {name: one["passed"] for name, one in found.items()} == {"x": False, "greek": True}
    assert "x.safetensors" in found["x"]["reasons"][0]
