"""The whole way of a user: a diffusers folder as base, its LoRA and folded weights by the API."""

import diffusers
import pytest
import torch

import smidgen
from smidgen.errors import SmidgenError, UsageError
from tests.tiny.deltas import changed, foldable, lora


@pytest.fixture(scope="module")
def base(cases):
    return smidgen.load_base(cases("sd").folder)


def test_a_base_of_diffusers_folds_into_both_of_its_formats(base, tmp_path):
    delta = foldable(base.denoiser, base.fingerprint)
    folder = smidgen.fold(base, delta, format="diffusers", output=tmp_path / "folder")
    path = smidgen.fold(base, delta, format="single-file", output=tmp_path / "f.safetensors")
    one = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    other = diffusers.StableDiffusionPipeline.from_single_file(
        str(path), config=base.name, local_files_only=True
    ).unet.state_dict()
    assert any(not torch.equal(one[key], t) for key, t in base.denoiser.state_dict().items())
    assert all(torch.equal(other[key], tensor) for key, tensor in one.items())
    with pytest.raises(UsageError, match="is not written as dit; choose from: diffusers, single"):
        smidgen.fold(base, delta, format="dit", output=tmp_path / "x.pt")


def test_lora_goes_out_and_comes_back_and_folds(base, tmp_path):
    delta = lora(base.denoiser, fingerprint=base.fingerprint)
    path = smidgen.export_lora(delta, base, format="kohya", output=tmp_path / "l.safetensors")
    read = smidgen.import_lora(path, base)
    folder = smidgen.fold(base, read, format="diffusers", output=tmp_path / "folder")
    found = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    for key, tensor in changed(base.denoiser.state_dict(), delta).items():
        torch.testing.assert_close(found[key].double(), tensor, rtol=1e-5, atol=1e-5, msg=key)


def test_a_delta_of_another_base_is_refused(base, tmp_path):
    other = lora(base.denoiser)
    with pytest.raises(SmidgenError, match="fingerprint"):
        smidgen.export_lora(other, base, format="peft", output=tmp_path / "x.safetensors")
    with pytest.raises(SmidgenError, match="fingerprint"):
        smidgen.fold(base, other, format="diffusers", output=tmp_path / "x")
