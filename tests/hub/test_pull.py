"""What `smidgen pull` fetches and refuses, and what `smidgen ls` shows."""

import json

import pytest
import torch
from safetensors.torch import save

import smidgen as package
from smidgen.core.file import HEADER
from smidgen.errors import SmidgenError, UsageError
from smidgen.hub import config
from tests.hub.standin import READER
from tests.serving.serving import fitting
from tests.tiny.bases import tiny_base

REPO = "owner/greek"


@pytest.fixture
def pushed(hub, run):
    """The stand-in with the run in it."""
    package.push(run, REPO, licence="mit")
    hub.served.clear()
    return hub


def test_a_delta_comes_back_as_it_was_with_what_lies_beside_it(pushed, run, base, tmp_path):
    delta = package.pull(REPO, output=tmp_path / "here", base=base)
    saved = package.Delta.load(run / "delta.safetensors")
    assert delta.provenance == saved.provenance
    for name, value in saved.state_dict().items():
        assert torch.equal(delta.state_dict()[name], value)
    files = pushed.files(REPO)
    held = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert held == {name: files[name] for name in files if name in config.LIMITS}
    assert not list(tmp_path.glob(".*"))


def test_only_files_of_a_delta_are_fetched(pushed, tmp_path):
    others = {"model.bin": b"a pickle", "delta.pt": b"a pickle", "sub/delta.safetensors": b"x"}
    pushed.files(REPO).update(others)
    package.pull(REPO, output=tmp_path / "here")
    assert set(pushed.served) <= set(config.LIMITS)


def test_a_revision_is_fetched_by_its_commit(pushed, base, tmp_path, smidgen):
    first = pushed.repos[REPO].head[0]
    fitting(base, "lora").save(tmp_path / "other.safetensors")
    package.push(tmp_path / "other.safetensors", REPO)
    delta = package.pull(REPO, revision=first, output=tmp_path / "first")
    assert delta.provenance.method == "difffit"
    assert package.pull(REPO, output=tmp_path / "now").provenance.method == "lora"
    outcome = smidgen("pull", REPO, "--revision", "v9", "--output", tmp_path / "v9")
    assert outcome.code == 1
    assert "no such revision" in outcome.err


def test_a_delta_of_another_base_is_refused_by_name(pushed, tmp_path, smidgen):
    with pytest.raises(SmidgenError, match=r'for base "tiny-0" .* base "tiny-1" are others'):
        package.pull(REPO, output=tmp_path / "here", base=tiny_base(seed=1))
    outcome = smidgen("pull", REPO, "--base", "glyphs", "--output", tmp_path / "here")
    assert outcome.code == 1
    assert 'base "glyphs" are others' in outcome.err
    assert not (tmp_path / "here").exists()
    assert not list(tmp_path.glob(".*"))


def test_what_is_there_is_left_unless_it_is_forced(pushed, base, tmp_path, smidgen):
    output = tmp_path / "here"
    assert smidgen("pull", REPO, "--output", output).code == 0
    again = smidgen("pull", REPO, "--output", output)
    assert again.code == 0
    assert "holds this already" in again.err
    fitting(base, "lora").save(tmp_path / "other.safetensors")
    package.push(tmp_path / "other.safetensors", REPO)
    refused = smidgen("pull", REPO, "--output", output)
    assert refused.code == 2
    assert "--force" in refused.err
    assert (output / "grid.png").exists()
    assert smidgen("pull", REPO, "--output", output, "--force").code == 0
    assert {path.name for path in output.iterdir()} == {"README.md", "delta.safetensors"}


def test_a_folder_with_anything_else_is_never_replaced(pushed, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        package.pull(REPO, output=tmp_path, force=True)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def hostile(name: str) -> dict[str, bytes]:
    """Files of a repository that is not what it says."""
    good = {"w": torch.zeros(2)}
    header = {"format_version": 1, "edits": [{"kind": "evil"}], "method": "m", "config": {}}
    header |= {"host": "dit", "base": "b", "fingerprint": "f", "classes": [], "training": {}}
    contents = {
        "no header": save(good),
        "a header that is no JSON": save(good, metadata={HEADER: "{" * 50}),
        "an unknown kind": save(good, metadata={HEADER: json.dumps(header)}),
        "a header beyond measure": (2**40).to_bytes(8, "little") + b"{}",
        "a pickle by another name": b"\x80\x04cos\nsystem\n",
    }
    return {"delta.safetensors": contents[name]}


@pytest.mark.parametrize(
    "name",
    [
        "no header",
        "a header that is no JSON",
        "an unknown kind",
        "a header beyond measure",
        "a pickle by another name",
    ],
)
def test_a_hostile_file_is_refused_and_never_put_in_place(hub, tmp_path, smidgen, name):
    hub.put(REPO, hostile(name))
    outcome = smidgen("pull", REPO, "--output", tmp_path / "here")
    assert outcome.code == 1
    assert len(outcome.complaint) == 1
    assert f'"{REPO}" on the hub: ' in outcome.err
    assert str(tmp_path) not in outcome.err
    assert not (tmp_path / "here").exists()


def test_a_damaged_picture_and_a_damaged_result_are_refused(pushed, tmp_path):
    for file in ("grid.png", "result.json"):
        kept = pushed.files(REPO)[file]
        pushed.files(REPO)[file] = b"["
        with pytest.raises(SmidgenError, match=f'"{REPO}" on the hub: .*{file}'):
            package.pull(REPO, output=tmp_path / "here")
        pushed.files(REPO)[file] = kept


def test_what_is_larger_than_it_may_be_is_not_fetched(pushed, tmp_path):
    pushed.sizes["delta.safetensors"] = 2**40
    with pytest.raises(SmidgenError, match=r"1,099,511,627,776 bytes; at most"):
        package.pull(REPO, output=tmp_path / "here")
    assert pushed.served == []


def test_repositories_that_hold_no_delta_or_are_not_there_are_named(hub, tmp_path, smidgen):
    hub.put("owner/model", {"README.md": b"", "model.bin": b"a pickle"})
    hub.put("owner/secret", {"delta.safetensors": b""}, private=True)
    hub.put("owner/gated", {"delta.safetensors": b""}, gated=True)
    for repo, said in (
        ("owner/model", "holds no delta.safetensors but model.bin"),
        ("owner/none", 'no model "owner/none"'),
    ):
        outcome = smidgen("pull", repo, "--output", tmp_path / "here")
        assert outcome.code == 1
        assert said in outcome.err
    assert hub.served == []


def test_what_a_token_may_not_see_is_not_shown(hub, tmp_path, monkeypatch):
    hub.put("owner/secret", {"delta.safetensors": b""}, private=True)
    hub.put("owner/gated", {"delta.safetensors": b""}, gated=True)
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(SmidgenError, match="that you may read"):
        package.pull("owner/secret", output=tmp_path / "here")
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(SmidgenError, match="is gated"):
        package.pull("owner/gated", output=tmp_path / "here")


@pytest.mark.parametrize("arguments", [("pull", REPO, "--output", "here"), ("ls",)])
def test_a_hub_that_is_not_there_is_said_in_a_line(at, smidgen, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    at("http://127.0.0.1:9")
    outcome = smidgen(*arguments)
    assert outcome.code == 1
    assert len(outcome.complaint) == 1
    assert "the hub cannot be reached" in outcome.err
    assert not (tmp_path / "here").exists()


def test_deltas_are_listed_by_tag_owner_and_base(pushed, run, smidgen):
    package.push(run, "other/greek", base_model="maker/tiny", private=True)
    pushed.put("other/model", {"README.md": b"---\ntags: [diffusers]\n---\n"})
    pushed.put("liar/odd", {"README.md": b"---\ntags: [smidgen]\nsmidgen: {trainable: x}\n---\n"})
    count = package.Delta.load(run / "delta.safetensors").num_parameters()

    def listed(*arguments):
        return {one["repo"]: one for one in smidgen("ls", *arguments, "--json").document["deltas"]}

    assert set(listed()) == {REPO, "other/greek", "liar/odd"}
    assert listed()["liar/odd"]["method"] is None
    assert set(listed("owner")) == {REPO}
    assert set(listed("--base", "maker/tiny")) == {"other/greek"}
    assert set(listed("--base", "tiny-0")) == {REPO, "other/greek"}
    lines = smidgen("ls").out.splitlines()
    assert lines[0].split() == ["repo", "base", "method", "trainable", "classes", "changed"]
    (line,) = (line for line in lines if line.startswith("owner/greek"))
    assert line.split() == [REPO, "tiny-0", "difffit", f"{count:,}", "4", "2026-12-01"]
    assert any(line.startswith("other/greek (private)") for line in lines)
    few = smidgen("ls", "--limit", "1")
    assert "more than 1 on the hub" in few.err
    assert smidgen("ls", "nobody").out == "no deltas there\n"
