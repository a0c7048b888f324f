"""`smidgen convert` and `smidgen fold` on their command lines, with a tiny DiT."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from smidgen import export_lora, import_lora
from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.core.file import read_file, write_file
from smidgen.errors import UsageError
from smidgen.files.standing import START_OVER
from smidgen.interop.lora import write_lora
from smidgen.models.pretrained import load_base
from smidgen.models.sources import load_codec
from tests.tiny.codecs import autoencoder
from tests.tiny.deltas import changed, lora
from tests.tiny.networks import DIT, dit
from tests.tiny.own_folder import write_safetensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base folder of ours with a LoRA delta beside it."""
    root = tmp_path_factory.mktemp("convert")
    autoencoder().save_pretrained(root / "codec")
    names = [f"class {number}" for number in range(DIT.num_classes)]
    codec = load_codec(root / "codec")
    write_safetensors(dit(), root / "base", codec=codec, class_names=names)
    base = load_base(root / "base")
    facts = {"chosen": lambda one: one.role in ("q", "v"), "fingerprint": base.fingerprint}
    lora(base.denoiser, **facts).save(root / "delta.safetensors")
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
    capsys.readouterr()
    assert smidgen(*arguments) == 2, "an existing output is not overwritten"
    assert START_OVER in capsys.readouterr().err
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


def theirs(folder, tmp_path, **more):
    """A kohya file of the delta in the folder, with more or other tensors."""
    path = tmp_path / "theirs.safetensors"
    base = load_base(folder / "base")
    write_lora(Delta.load(folder / "delta.safetensors"), path, base.denoiser, format="kohya")
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors | more, path)
    return path, tensors


def test_the_text_encoders_part_is_left_out_where_that_is_asked(folder, tmp_path, capsys):
    texts = {f"lora_te_text_model_layers_{n}_mlp_fc1.lora_up.weight": torch.ones(2) for n in "012"}
    path, _ = theirs(folder, tmp_path, **texts)
    out = tmp_path / "out.safetensors"
    arguments = ("convert", "--base", folder / "base", "--file", path, "--output", out)
    assert smidgen(*arguments, "--format", "delta") == 1
    error = capsys.readouterr().err
    assert "LoRA of text encoders (3 tensors, first lora_te_text" in error
    assert "--leave-out-text-encoder" in error
    assert not out.exists()
    assert smidgen(*arguments, "--format", "delta", "--leave-out-text-encoder", "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["left_out"] == {"LoRA of text encoders": 3}
    assert "left out: LoRA of text encoders, 3 tensors" in shown.err
    assert Delta.load(out).provenance.training["left_out"] == {"LoRA of text encoders": 3}
    assert smidgen(*arguments, "--format", "peft", "--leave-out-text-encoder", "--force") == 2
    assert "is for --format delta" in capsys.readouterr().err
    base = load_base(folder / "base")
    assert len(import_lora(path, base, text_encoder="leave-out").edits) == len(
        Delta.load(out).edits
    )
    with pytest.raises(UsageError, match='text_encoder "keep"; choose from: refuse, leave-out'):
        import_lora(path, base, text_encoder="keep")


def test_numbers_that_are_not_finite_end_convert_and_fold_with_their_tensors(
    folder, tmp_path, capsys
):
    _, tensors = theirs(folder, tmp_path)
    name = next(name for name in tensors if name.endswith("lora_up.weight"))
    path, _ = theirs(folder, tmp_path, **{name: torch.full_like(tensors[name], float("nan"))})
    out = tmp_path / "out.safetensors"
    common = ("--base", folder / "base", "--output", out)
    assert smidgen("convert", "--file", path, "--format", "delta", *common) == 1
    assert f"not finite (NaN or infinity): {name}; " in capsys.readouterr().err
    content, tensors = read_file(folder / "delta.safetensors")
    bad = next(iter(tensors))
    tensors[bad].fill_(float("inf"))
    write_file(tmp_path / "bad.safetensors", tensors, content)
    fold = ("fold", "--delta", tmp_path / "bad.safetensors", "--format", "dit", *common[:-1])
    assert smidgen(*fold, tmp_path / "out.pt") == 1
    assert f"not finite (NaN or infinity): {bad}; " in capsys.readouterr().err
    convert = ("convert", "--file", tmp_path / "bad.safetensors", "--format", "peft", *common)
    assert smidgen(*convert) == 1
    assert f"not finite (NaN or infinity): {bad}; " in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "out.pt").exists()


def test_an_exported_file_says_what_it_is(folder, tmp_path):
    base, delta = load_base(folder / "base"), Delta.load(folder / "delta.safetensors")
    one, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    export_lora(delta, base, format="kohya", output=one)
    export_lora(delta.clone(), base, format="kohya", output=other)
    assert one.read_bytes() == other.read_bytes()
    with safe_open(one, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "DiT/lora"
    assert metadata["modelspec.resolution"] == f"{base.image_size}x{base.image_size}"
    assert metadata["format"] == "pt"
    assert "modelspec.date" not in metadata


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
