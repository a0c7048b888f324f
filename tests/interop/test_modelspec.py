"""The metadata of exported LoRA files: the fields of ModelSpec, and equal bytes of equal deltas."""

import dataclasses
import hashlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from smidgen.core.delta import Delta
from smidgen.diffusion.flow import FlowSchedule
from smidgen.diffusion.process import Diffusion, Flow
from smidgen.diffusion.schedule import Schedule
from smidgen.interop.lora import read_lora, write_lora
from smidgen.interop.modelspec import file_of, modelspec
from smidgen.sizes import ImageSize
from tests.tiny.bases import base_of
from tests.tiny.deltas import lora
from tests.tiny.networks import SD_3_5, dit, network

MUST = {"sai_model_spec", "architecture", "implementation", "title"}


def process_of(name):
    if name == "flow":
        return Flow(schedule=FlowSchedule(), num_tokens=16)
    return Diffusion(schedule=Schedule.linear(10), prediction=name)


def fields(model, objective="epsilon", form="kohya", **training):
    delta = lora(model, share=0.1)
    provenance = dataclasses.replace(delta.provenance, base="models/sd-folder", training=training)
    base = SimpleNamespace(
        denoiser=model, image_size=ImageSize.of(512), process=process_of(objective)
    )
    found = modelspec(Delta(delta.edits, provenance), base, form)
    assert all(key.startswith("modelspec.") for key in found)
    found = {key.removeprefix("modelspec."): value for key, value in found.items()}
    assert found.keys() >= MUST
    return found


KNOWN = {
    "sd 1": (lambda: network("sd", cross_attention_dim=768), "epsilon", "stable-diffusion-v1", ""),
    "sd 2": (
        lambda: network("sd", cross_attention_dim=1024),
        "epsilon",
        "stable-diffusion-v2-512",
        "",
    ),
    "sd 2 v": (
        lambda: network("sd", cross_attention_dim=1024),
        "v",
        "stable-diffusion-v2-768-v",
        "",
    ),
    "flux": (lambda: network("flux"), "flow", "FluxTransformer2DModel", "black-forest-labs/flux"),
    "sd 3.5": (
        lambda: network("sd3", **SD_3_5),
        "flow",
        "stable-diffusion-3-5-medium",
        "Stability-AI/sd3.5",
    ),
    "tiny xl": (lambda: network("sdxl"), "epsilon", "UNet2DConditionModel", "generative-models"),
    "dit": (lambda: dit(), "hybrid", "DiT", "facebookresearch/DiT"),
}


@pytest.mark.parametrize(("make", "objective", "name", "code"), KNOWN.values(), ids=KNOWN)
def test_the_fields_that_must_be_there_are_those_of_the_base(make, objective, name, code):
    model = make()
    found = fields(model, objective)
    assert found["architecture"] == f"{name}/lora"
    original = f"https://github.com/{code}" if "/" in code else found["implementation"]
    assert found["implementation"] == (original if code else "diffusers")
    assert found["implementation"].endswith(code or "diffusers")
    assert fields(model, objective, form="peft")["implementation"] == "diffusers"
    assert found["resolution"] == "512x512"
    assert found.get("prediction_type") == {"flow": None, "v": "v"}.get(objective, "epsilon")


def test_what_the_delta_was_trained_on_is_told():
    prompts = {"template": "a photo of {class}", "classes": ["cat", "dog"]}
    found = fields(network("sd"), data={"name": "pets"}, prompts=prompts)
    assert found["title"] == "pets, LoRA of sd-folder"
    assert found["usage_hint"] == "Trained on: a photo of cat; a photo of dog"
    bare = fields(network("sd"), data=5)
    assert bare["title"] == "LoRA of sd-folder"
    assert "usage_hint" not in bare


def test_the_hash_is_that_of_the_tensors_and_the_file_is_read_back(tmp_path):
    model = network("sd")
    delta = lora(model, share=0.2)
    base = SimpleNamespace(
        denoiser=model, image_size=ImageSize.of(512), process=process_of("epsilon")
    )
    described = modelspec(delta, base, "kohya")
    path = tmp_path / "l.safetensors"
    write_lora(delta, path, model, format="kohya", metadata=described)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    content = path.read_bytes()
    tensors = content[8 + int.from_bytes(content[:8], "little") :]
    assert sum(tensor.nbytes for tensor in load_file(path).values()) == len(tensors)
    digest = f"0x{hashlib.sha256(tensors).hexdigest()}"
    assert metadata == {**described, "format": "pt", "modelspec.hash_sha256": digest}
    assert len(read_lora(path, base_of(model)).edits) == len(delta.edits)


def test_equal_tensors_and_metadata_are_equal_bytes_in_another_process():
    """safetensors writes metadata in an order that differs between processes."""
    code = (
        "import sys, torch\n"
        "from smidgen.interop.modelspec import file_of\n"
        "sys.stdout.buffer.write(file_of({'a': torch.ones(3)}, dict.fromkeys('hgfedcba', 'x')))"
    )
    expected = file_of({"a": torch.ones(3)}, dict.fromkeys("abcdefgh", "x"))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout == expected
    assert torch.equal(load(expected)["a"], torch.ones(3))
