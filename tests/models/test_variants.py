"""Weights whose files say that they are in half precision: which are read, and from the hub."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from smidgen.models.files import second_copies, variant_of, weight_files
from smidgen.models.pretrained import load_base
from tests.tiny.pipelines import TINY_PIPELINES

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A pipeline of SDXL whose plain files are in float16."""
    folder = TINY_PIPELINES["sdxl"].save(tmp_path_factory.mktemp("variants") / "plain")
    for path in folder.rglob("*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halved, path, metadata={"format": "pt"})
    return folder


def as_variant(plain, to, parts=PARTS, **save):
    """What diffusers writes as a variant of the same weights, of these components."""
    shutil.copytree(plain, to)
    pipeline = TINY_PIPELINES["sdxl"].load(plain, torch_dtype=torch.float16)
    for part in parts:
        for path in (to / part).glob("*.safetensors"):
            path.unlink()
        getattr(pipeline, part).save_pretrained(to / part, variant="fp16", **save)
    return to


def same(one, other):
    left, right = one.denoiser.state_dict(), other.denoiser.state_dict()
    assert all(torch.equal(left[name], right[name]) for name in right)
    images = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    assert torch.equal(one.codec.encode(images)[0], other.codec.encode(images)[0])
    texts = [base.conditioner.encode(["a red fox"]) for base in (one, other)]
    assert all(torch.equal(texts[0][name], texts[1][name]) for name in ("text", "pooled"))


@pytest.mark.parametrize(
    ("parts", "save"),
    [(PARTS, {}), (PARTS, {"max_shard_size": "20KB"}), (("text_encoder_2", "vae"), {})],
    ids=["whole", "in parts", "of some components"],
)
def test_a_variant_alone_loads_as_the_plain_files_do(plain, tmp_path, parts, save):
    folder = as_variant(plain, tmp_path / "variant", parts, **save)
    assert {part for part in PARTS if variant_of(folder / part) == "fp16"} == set(parts)
    assert (len(weight_files(folder / "text_encoder_2")) > 1) == bool(save)
    same(load_base(folder), load_base(plain))


def test_the_plain_files_are_taken_where_both_are_there(plain, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(plain, folder)
    for path in list(folder.rglob("*.safetensors")):
        zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}
        save_file(zeros, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    same(load_base(folder), load_base(plain))


def test_each_component_takes_its_own_where_some_have_both(plain, tmp_path):
    """diffusers takes one variant for all that have it."""
    folder = as_variant(plain, tmp_path / "mixed", ("text_encoder_2",))
    weights = folder / "text_encoder" / "model.safetensors"
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}
    save_file(zeros, weights.with_name("model.fp16.safetensors"), metadata={"format": "pt"})
    same(load_base(folder), load_base(plain))


def test_of_all_files_the_second_copies_are_those_that_are_not_read():
    name = "unet/diffusion_pytorch_model"
    plain, half = f"{name}.safetensors", f"{name}.fp16.safetensors"
    parts = [
        f"{name}.safetensors.index.fp16.json",
        f"{name}.fp16-00001-of-00002.safetensors",
        f"{name}-00002-of-00002.fp16.safetensors",
    ]
    ema = f"{name}.non_ema.safetensors"
    others = ["unet/config.json", "text_encoder/model.safetensors", "dit.safetensors"]
    assert second_copies([plain, half, ema, *others]) == [half, ema]
    assert second_copies([half, ema, *others]) == [ema]
    assert second_copies([*parts, *others]) == []
    assert second_copies([f"{name}-00001-of-00002.safetensors", *parts]) == parts
    assert second_copies([half, f"{name}.bf16.safetensors"]) == [f"{name}.bf16.safetensors"]
