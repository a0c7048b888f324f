"""`smidgen convert` and `smidgen fold` on their command lines, with a tiny DiT."""

import json

import pytest
import torch
from safetensors.torch import load_file

from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.interop.lora import write_lora
from smidgen.models.dit_weights import write_safetensors
from smidgen.models.pretrained import load_base, load_codec
from tests.interop import tiny
from tests.interop.test_lora import changed, lora
from tests.models.conftest import TINY, random_dit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base folder of ours with a LoRA delta beside it."""
    root = tmp_path_factory.mktemp("convert")
    tiny.vae(block_out_channels=(8, 16), norm_num_groups=4).save_pretrained(root / "codec")
    names = [f"class {number}" for number in range(TINY.num_classes)]
    codec = load_codec(root / "codec")
    write_safetensors(random_dit(TINY), root / "base", codec=codec, class_names=names)
    base = load_base(root / "base")
    delta = lora(base.denoiser, chosen=lambda one: one.role in ("q", "v"))
    provenance = type(delta.provenance)(
        **{**vars(delta.provenance), "fingerprint": base.fingerprint}
    )
    Delta(delta.edits, provenance).save(root / "delta.safetensors")
    return root


def smidgen(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_a_delta_goes_out_and_comes_back(folder, tmp_path, form, capsys):
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    common = ("convert", "--base", folder / "base")
    ours = folder / "delta.safetensors"
    assert smidgen(*common, "--file", ours, "--format", form, "--output", there) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(there)
    arguments = (*common, "--file", there, "--format", "delta", "--output", back)
    assert smidgen(*arguments, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    read = Delta.load(back)
    assert document["trainable"] == read.num_parameters()
    state = load_base(folder / "base").denoiser.state_dict()
    given, found = (changed(state, one) for one in (Delta.load(ours), read))
    for key, tensor in given.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-6, msg=key)
    assert smidgen(*arguments) == 2, "an existing output is not overwritten"
    assert smidgen(*arguments, "--force") == 0


def test_misuse_is_answered_in_one_line(folder, tmp_path, capsys):
    common = ("convert", "--base", folder / "base", "--format", "peft")
    delta, out = folder / "delta.safetensors", tmp_path / "x.safetensors"
    before = delta.read_bytes()
    for arguments, message in [
        (("--file", tmp_path / "none", "--output", out), "no such delta"),
        (("--file", folder, "--output", out), "is a folder"),
        (("--file", delta, "--output", tmp_path / "x.pt"), "must end in"),
        (("--file", delta, "--output", delta, "--force"), "is the file to convert"),
        (("--file", delta, "--output", out, "--format", "delta"), "is a delta already"),
        (("--file", delta, "--output", out, "--device", "cuda"), 'unknown flag "--device"'),
    ]:
        assert smidgen(*common, *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert delta.read_bytes() == before
    assert not out.exists()


def test_a_file_that_is_no_lora_does_not_wait_for_the_base(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("smidgen.api.load_base", None)
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(b"no tensors")
    common = ("convert", "--base", folder / "base", "--format", "delta")
    assert smidgen(*common, "--file", path, "--output", tmp_path / "x.safetensors") == 1
    assert "theirs.safetensors is truncated or damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("fold", "--delta", "delta.safetensors", "--format", "dit"),
        ("convert", "--file", "delta.safetensors", "--format", "peft"),
        ("convert", "--file", "peft.safetensors", "--format", "delta"),
    ],
)
def test_a_file_of_the_base_is_never_replaced(folder, arguments, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    ours, theirs = folder / "delta.safetensors", folder / "peft.safetensors"
    write_lora(Delta.load(ours), theirs, load_base(folder / "base").denoiser, format="peft")
    weights = folder / "base" / "dit.safetensors"
    before = weights.read_bytes()
    assert smidgen(*arguments, "--base", "base", "--output", weights, "--force") == 1
    assert "is in the base, which stays as it is" in capsys.readouterr().err
    assert weights.read_bytes() == before


def test_folding_a_dit_into_a_file_that_it_has_not_is_refused(folder, tmp_path, capsys):
    common = ("fold", "--base", folder / "base", "--delta", folder / "delta.safetensors")
    single = ("--format", "single-file", "--output", tmp_path / "x.safetensors")
    assert smidgen(*common, *single, "--device", "cpu") == 2
    assert 'unknown flag "--device"' in capsys.readouterr().err, "folding is done on the CPU"
    assert smidgen(*common, *single) == 2
    assert "a DiT is not written as single-file; choose from: dit, diffusers" in (
        capsys.readouterr().err
    )
    out = tmp_path / "folded"
    assert smidgen(*common, "--format", "diffusers", "--output", out) == 0
    weights = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
    table = weights["transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"]
    assert len(table) == 1001
    folded = load_base(out).denoiser.state_dict()
    base = load_base(folder / "base").denoiser.state_dict()
    expected = changed(base, Delta.load(folder / "delta.safetensors"))
    for key, tensor in folded.items():
        torch.testing.assert_close(tensor.double(), expected[key], rtol=1e-5, atol=1e-6, msg=key)
