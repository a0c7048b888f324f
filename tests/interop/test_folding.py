"""Folded into a pipeline folder or a single file, stock diffusers draws what attaching draws."""

import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from smidgen.core.fold import fold
from smidgen.errors import SmidgenError
from smidgen.hosts.host import find_host
from smidgen.interop.pipeline_folder import (
    fold_into_folder,
    fold_into_single_file,
    open_pipeline,
)
from tests.interop.cases import CASES
from tests.tiny.deltas import foldable
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.text import clip_text, clip_tokenizer


@pytest.fixture(params=CASES)
def case(request, cases):
    return cases(request.param)


@pytest.fixture
def folder(cases, tmp_path):
    """A folder of Stable Diffusion that a test may change."""
    return shutil.copytree(cases("sd").folder, tmp_path / "sd")


def close(images, expected):
    # two float32 runs, through the network twice and a decoder, of weights rounded once
    torch.testing.assert_close(images, expected, rtol=0, atol=2e-3)


def test_a_folded_folder_draws_the_images_of_the_delta(case, tmp_path):
    out = fold_into_folder(case.delta, open_pipeline(case.folder), case.host, tmp_path / "out")
    close(case.draw(case.tiny.load(out)), case.expected)
    before = {p.relative_to(case.folder): p.stat().st_size for p in case.folder.rglob("*.*")}
    after = {p.relative_to(out): p.stat().st_size for p in out.rglob("*.*")}
    assert set(after) == set(before), "every file of the pipeline is there, and no other"


def test_a_single_file_draws_the_images_of_the_delta(case, tmp_path):
    path = tmp_path / "model.safetensors"
    fold_into_single_file(case.delta, open_pipeline(case.folder), case.host, path)
    close(case.draw(case.tiny.load_file(path, case.folder)), case.expected)


def test_folding_keeps_the_files_precision_and_leaves_the_base_alone(folder, tmp_path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.half().save_pretrained(folder / "unet")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    delta = foldable(unet)
    out = fold_into_folder(delta, open_pipeline(folder), find_host(unet), tmp_path / "out")
    assert before == {path: path.read_bytes() for path in folder.rglob("*.*")}
    folded = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    expected = fold(delta, unet.state_dict(), find_host(unet).folds)
    assert {tensor.dtype for tensor in folded.values()} == {torch.float16}
    assert set(folded) == set(expected)
    assert all(torch.equal(folded[key], tensor) for key, tensor in expected.items())


def test_variants_become_plain_files_and_second_copies_stay_behind(folder, tmp_path):
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    weights = folder / "text_encoder" / "model.safetensors"
    texts = load_file(weights)
    weights.rename(weights.with_name("model.fp16.safetensors"))
    codec = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(codec, codec.with_suffix(".fp16.safetensors"))
    out = fold_into_folder(foldable(unet), open_pipeline(folder), find_host(unet), tmp_path / "out")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*.safetensors")}
    parts = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    assert found == {f"{part}.safetensors" for part in parts}
    copied = load_file(out / "text_encoder" / "model.safetensors")
    assert all(torch.equal(copied[key], tensor) for key, tensor in texts.items())


def test_weights_that_the_output_holds_are_replaced(cases, tmp_path):
    """diffusers reads an index of shards before the file beside it."""
    case, out = cases("sd"), tmp_path / "out"
    unet = case.fresh().unet
    with torch.no_grad():
        unet.conv_in.bias += 1
    unet.save_pretrained(out / "unet", max_shard_size="200KB")
    assert (out / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    fold_into_folder(case.delta, open_pipeline(case.folder), case.host, out)
    found = diffusers.UNet2DConditionModel.from_pretrained(out / "unet").state_dict()
    expected = fold(case.delta, case.denoiser.state_dict(), case.host.folds)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_an_optional_component_that_is_not_there_is_switched_off(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    out = fold_into_folder(foldable(unet), open_pipeline(folder), find_host(unet), tmp_path / "out")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(out)
    assert pipeline.safety_checker is None


def test_open_clip_of_sd_2_goes_into_a_single_file(tmp_path):
    tiny = TINY_PIPELINES["sd"]
    open_clip = clip_text(clip_tokenizer(tmp_path / "words"), hidden_act="gelu")
    folder = tiny.save(tmp_path / "sd2", text_encoder=open_clip)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    path = tmp_path / "model.safetensors"
    fold_into_single_file(foldable(unet), open_pipeline(folder), find_host(unet), path)
    own = open_clip.state_dict()
    found = tiny.load_file(path, folder).text_encoder.state_dict()
    assert set(found) == set(own)
    assert all(torch.equal(found[key], tensor) for key, tensor in own.items())


def test_what_cannot_be_folded_or_written_is_refused(folder, tmp_path):
    pipeline = open_pipeline(folder)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    delta, host = foldable(unet), find_host(unet)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(SmidgenError, match="is in the base, which stays as it is"):
        fold_into_folder(delta, pipeline, host, folder / "folded")
    with pytest.raises(SmidgenError, match="is in the base, which stays as it is"):
        fold_into_single_file(delta, pipeline, host, weights)
    assert weights.read_bytes() == before
    with pytest.raises(SmidgenError, match=r"is no diffusers pipeline: it has no model_index"):
        open_pipeline(tmp_path)
    config = json.loads((folder / "unet" / "config.json").read_text())
    for change, reason in [
        ({"_class_name": "Kandinsky3UNet"}, "no original names for a Kandinsky3UNet"),
        ({"class_embed_type": "projection"}, "this one has other embeddings"),
    ]:
        (folder / "unet" / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(SmidgenError, match=reason):
            fold_into_single_file(delta, pipeline, host, tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
