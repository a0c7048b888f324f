"""What `smidgen push` sends, and what it refuses before anything is sent."""

import json
import shutil
import tomllib
from typing import Any

import pytest
from huggingface_hub import ModelCard

import smidgen as package
from smidgen.core.file import read_header
from smidgen.errors import SmidgenError, UsageError
from tests.hub.conftest import DATE, write_result
from tests.hub.standin import READER
from tests.serving.serving import fitting

PUSHED = {"README.md", "delta.safetensors", "grid.png", "result.json", "recipe.toml"}
REPO = "owner/greek"


def metadata(card: ModelCard) -> Any:
    """The client's own reading of the block above a card."""
    return card.data


def test_a_run_goes_to_the_hub_with_what_tells_of_it_and_nothing_else(hub, run, smidgen):
    outcome = smidgen("push", run, "--repo", REPO, "--licence", "cc-by-4.0", "--json")
    assert outcome.code == 0, outcome.err
    files = hub.files(REPO)
    assert set(files) - {".gitattributes"} == PUSHED
    assert files["delta.safetensors"] == (run / "delta.safetensors").read_bytes()
    assert files["grid.png"] == (run / "grid.png").read_bytes()
    assert outcome.document["url"].endswith(f"/{REPO}")
    assert outcome.document["files"] == {name: len(files[name]) for name in PUSHED}
    assert not hub.repos[REPO].private


def test_the_records_that_are_pushed_name_no_folder_of_this_machine(hub, run, tmp_path):
    package.push(run, REPO)
    files = hub.files(REPO)
    assert tomllib.loads(files["recipe.toml"].decode()) == {
        **{"base": "tiny", "data": "photos", "prompt": "/imagine/a cat", "steps": 7},
        "lora": {"rank": 8},
    }
    assert json.loads(files["result.json"])["protocol"]["reference"] == "greek"
    assert not any(str(tmp_path).encode() in content for content in files.values())


def test_the_card_says_what_header_and_result_say(hub, run):
    package.push(run, REPO, licence="cc-by-4.0", base_model="maker/tiny")
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    header = read_header(run / "delta.safetensors")
    delta = package.Delta.load(run / "delta.safetensors")
    facts = card.data.to_dict()
    assert facts["license"] == "cc-by-4.0"
    assert facts["library_name"] == "smidgen"
    assert facts["tags"] == ["smidgen", "difffit"]
    assert (facts["base_model"], facts["base_model_relation"]) == ("maker/tiny", "adapter")
    assert facts["smidgen"] == {
        **{"base": header["base"], "fingerprint": header["fingerprint"], "method": "difffit"},
        **{"trainable": delta.num_parameters(), "classes": len(header["classes"])},
    }
    found = {one.metric_type: one for one in metadata(card).eval_results}
    assert set(found) == {"kid", "fd"}  # no number of class agreement
    assert found["fd"].metric_value == 2.5
    assert (found["kid"].metric_value, found["kid"].metric_args["std"]) == (0.25, 0.125)
    assert {one.dataset_name for one in found.values()} == {"greek"}
    assert {one.dataset_config for one in found.values()} == {"glyphs"}
    for said in (
        "![Samples](grid.png)",
        f"{delta.num_parameters():,} trained parameters",
        header["fingerprint"],
        ", ".join(f"`{name}`" for name in header["classes"]),
        "0.25000 ± 0.12500",
        "dpm++, 20 steps, guidance 1.5, seed 0",
        "against `greek`, 3,360 images",
        "480 images: read KID first",
        DATE,
        f'smidgen.pull("{REPO}", output="greek", base=base)',
        "--format diffusers",  # of a DiT, which has no other way into diffusers
    ):
        assert said in card.text, said


def test_a_delta_alone_is_pushed_under_the_name_of_a_delta(hub, base, tmp_path):
    fitting(base, "lora").save(tmp_path / "mine.safetensors")
    package.push(tmp_path / "mine.safetensors", REPO, private=True)
    assert set(hub.files(REPO)) == {".gitattributes", "README.md", "delta.safetensors"}
    assert hub.repos[REPO].private
    card = ModelCard(hub.files(REPO)["README.md"].decode())
    assert metadata(card).license is None
    assert metadata(card).eval_results is None
    assert "none was given" in card.text


def test_a_dry_run_shows_card_and_files_and_asks_nobody(at, run, smidgen):
    at("http://127.0.0.1:9")
    outcome = smidgen("push", run, "--repo", REPO, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    assert set(outcome.document["files"]) == PUSHED
    assert outcome.document["card"].startswith("---\nlibrary_name: smidgen")


def test_a_push_again_changes_nothing_and_another_delta_takes_all_of_the_first_away(
    hub, run, base, tmp_path, smidgen
):
    first = package.push(run, REPO)
    again = smidgen("push", run, "--repo", REPO)
    assert again.code == 0
    assert "held all of this already" in again.err
    assert hub.repos[REPO].head[0] == first["revision"]
    hub.files(REPO)["notes.txt"] = b"somebody's"
    fitting(base, "lora").save(tmp_path / "other.safetensors")
    package.push(tmp_path / "other.safetensors", REPO)
    assert set(hub.files(REPO)) == {
        *(".gitattributes", "README.md", "delta.safetensors", "notes.txt")
    }


def test_what_is_no_delta_of_ours_is_overwritten_only_by_force(hub, run, smidgen):
    model = {"model.safetensors": b"weights", "README.md": b"# A model"}
    foreign = {"delta.safetensors": (8).to_bytes(8, "little") + b"{}      ", "README.md": b"# x"}
    for files in (model, foreign):
        hub.put(REPO, files)
        outcome = smidgen("push", run, "--repo", REPO)
        assert outcome.code == 1
        assert "holds other than a delta of smidgen" in outcome.err
        assert hub.files(REPO) == files
        assert hub.calls == []
    hub.put(REPO, model)
    assert smidgen("push", run, "--repo", REPO, "--force").code == 0
    assert hub.files(REPO)["model.safetensors"] == b"weights"
    assert set(hub.files(REPO)) == {*PUSHED, "model.safetensors"}


def test_nothing_private_goes_where_all_can_read(hub, run):
    hub.put(REPO, {".gitattributes": b""})
    with pytest.raises(SmidgenError, match="is public"):
        package.push(run, REPO, private=True)
    assert hub.calls == []


@pytest.mark.parametrize(
    ("token", "said"),
    [(None, "`hf auth login`, or set HF_TOKEN"), (READER, "may write"), ("hf_x", "may write")],
)
def test_without_a_token_that_may_write_nothing_is_made(hub, run, monkeypatch, token, said):
    monkeypatch.setenv("HF_TOKEN", token or "")
    with pytest.raises(SmidgenError, match=said):
        package.push(run, REPO)
    assert hub.repos == {}


def test_a_card_that_the_hub_refuses_stops_all(hub, run):
    with pytest.raises(SmidgenError, match=r"refuses the card.*license"):
        package.push(run, REPO, licence="refused")
    assert hub.repos == {}


def test_a_commit_in_between_is_not_lost(hub, run, monkeypatch):
    package.push(run, REPO)
    from smidgen.hub import client

    real = client.check_card

    def meanwhile(card):
        real(card)
        oid, files = hub.repos[REPO].head
        hub.repos[REPO].commits.append((oid[::-1], files | {"theirs": b""}))

    monkeypatch.setattr(client, "check_card", meanwhile)
    with pytest.raises(SmidgenError, match="changed in the meantime"):
        package.push(run, REPO, licence="mit")
    assert "theirs" in hub.files(REPO)


def test_a_repository_that_appears_in_between_is_not_written_to(hub, run, monkeypatch):
    from smidgen.hub import client

    monkeypatch.setattr(client, "check_card", lambda card: hub.put(REPO, {"theirs": b""}))
    with pytest.raises(SmidgenError, match="changed in the meantime"):
        package.push(run, REPO)
    assert hub.files(REPO) == {"theirs": b""}


def damage(run, case):
    if case == "delta":
        content = (run / "delta.safetensors").read_bytes()
        (run / "delta.safetensors").write_bytes(content[:-8])
    elif case == "picture":
        (run / "grid.png").write_bytes(b"no picture")
    elif case == "result":
        (run / "result.json").write_text("{")
    elif case == "recipe":
        (run / "recipe.toml").write_text("= 3")
    elif case == "of another delta":
        write_result(run, delta_sha256="0" * 64)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("delta", "delta.safetensors is truncated or damaged"),
        ("picture", "grid.png is no PNG"),
        ("result", "result.json"),
        ("recipe", "recipe.toml: not valid TOML"),
        ("of another delta", "result of another delta"),
    ],
)
def test_what_is_damaged_is_named_before_the_hub_is_asked(at, run, case, said):
    at("http://127.0.0.1:9")
    damage(run, case)
    with pytest.raises(SmidgenError, match=said):
        package.push(run, REPO)


def test_a_record_of_something_else_is_left_out_and_said_so(hub, run, smidgen):
    (run / "result.json").write_text('{"before": {}, "after": {}}')
    outcome = smidgen("push", run, "--repo", REPO)
    assert outcome.code == 0
    assert "is no result of smidgen evaluate" in outcome.err
    assert "left out" in outcome.err
    assert "result.json" not in hub.files(REPO)


def test_a_hub_that_is_not_there_is_said_in_a_line(at, run, smidgen):
    at("http://127.0.0.1:9")
    outcome = smidgen("push", run, "--repo", REPO)
    assert outcome.code == 1
    assert len(outcome.complaint) == 1
    assert "the hub cannot be reached" in outcome.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repo": "greek"}, "expected OWNER/NAME"),
        ({"licence": "My Licence!"}, "expected an id of the hub"),
        ({"base_model": "here"}, "base_model"),
    ],
)
def test_settings_that_make_no_sense_are_refused(run, change, said):
    with pytest.raises(UsageError, match=said):
        package.push(run, **({"repo": REPO} | change))


def test_a_folder_without_a_delta_is_refused(run):
    shutil.move(run / "delta.safetensors", run / "d.safetensors")
    with pytest.raises(UsageError, match="has no delta"):
        package.push(run, REPO)
