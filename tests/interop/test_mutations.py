"""Changed LoRA files and adapters: each is refused in one line, or read and acts."""

import json

import pytest
import torch
from safetensors.torch import load, save_file

from smidgen.interop.lora import read_lora, write_lora
from tests.fuzzing import (
    changed_bytes,
    changed_header,
    changed_json,
    changed_tensors,
    each,
    refused,
)
from tests.models.conftest import TINY, inputs
from tests.tiny.bases import base_of
from tests.tiny.deltas import lora
from tests.tiny.networks import dit, network


@pytest.fixture(scope="module")
def base():
    return base_of(dit(TINY))


@pytest.fixture(scope="module")
def delta(base):
    return lora(base.denoiser, chosen=lambda one: one.role in ("q", "o", "ff1", "patch"))


def use(path, base, text_encoder="refuse"):
    """All that is done with a LoRA file: it is read, attached, saved."""
    delta = read_lora(path, base, text_encoder)
    with delta.attach(base.denoiser):
        base.denoiser(*inputs())
    delta.save(path.with_name("delta.safetensors"))


CONFIG = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 6,
    "alpha_pattern": {"blocks.0.attn.qkv": 3, r"^blocks\.1\.attn\.proj": 5},
    "rank_pattern": {},
    "init_lora_weights": "olora",
    "use_rslora": True,
    "target_modules": ["qkv"],
    "bias": "none",
    "modules_to_save": None,
    "megatron_core": "megatron.core",
}


@pytest.fixture
def adapter(tmp_path, base):
    """The folder of a PEFT adapter."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name in ("blocks.0.attn.qkv", "blocks.1.attn.proj"):
        size = base.denoiser.get_submodule(name).out_features
        for part, shape in (("A", (4, TINY.width)), ("B", (size, 4))):
            key = f"base_model.model.{name}.lora_{part}.weight"
            tensors[key] = torch.randn(shape, generator=generator)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "adapter_model.safetensors"


def test_the_whole_files_are_taken(adapter, base, delta, tmp_path):
    assert refused(lambda: use(adapter, base)) is None
    for form in ("peft", "kohya"):
        path = write_lora(delta, tmp_path / "l.safetensors", base.denoiser, format=form)
        assert refused(lambda path=path: use(path, base)) is None


def test_a_changed_configuration_is_refused_in_one_line_or_harmless(adapter, base):
    config = adapter.with_name("adapter_config.json")

    def check(rng):
        config.write_text(json.dumps(changed_json(CONFIG, rng)))
        return refused(lambda: use(adapter, base))

    assert {line is None for line in each(100, check)} == {True, False}, "some of both"


def test_changed_metadata_of_diffusers_is_refused_in_one_line_or_harmless(tmp_path, base, delta):
    path = write_lora(delta, tmp_path / "l.safetensors", base.denoiser, format="peft")
    tensors = load(path.read_bytes())
    config = {f"transformer.{key}": value for key, value in CONFIG.items()} | {
        "text_encoder.r": 3,
        "transformer.init_lora_weights": True,
    }

    def check(rng):
        text = json.dumps(changed_json(config, rng))
        if rng.random() < 0.1:
            text = changed_bytes(text.encode(), rng).decode(errors="replace")
        save_file(tensors, path, metadata={"lora_adapter_metadata": text})
        return refused(lambda: use(path, base))

    assert {line is None for line in each(60, check)} == {True, False}, "some of both"


@pytest.mark.parametrize("form", ["peft", "kohya"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_changed_tensors_are_refused_in_one_line_or_harmless(tmp_path, base, delta, form, suffix):
    written = write_lora(delta, tmp_path / "w.safetensors", base.denoiser, format=form)
    tensors, path = load(written.read_bytes()), tmp_path / f"l.{suffix}"

    def check(rng):
        changed = changed_tensors(tensors, rng)
        save_file(changed, path) if suffix == "safetensors" else torch.save(changed, path)
        return refused(lambda: use(path, base, rng.choice(("refuse", "leave-out"))))

    assert {line is None for line in each(60, check)} == {True, False}, "some of both"


@pytest.mark.parametrize("change", [changed_bytes, changed_header])
def test_a_changed_file_is_refused_in_one_line_or_harmless(tmp_path, base, delta, change):
    path = write_lora(delta, tmp_path / "l.safetensors", base.denoiser, format="kohya")
    content = path.read_bytes()

    def check(rng):
        path.write_bytes(change(content, rng))
        return refused(lambda: use(path, base))

    assert any(each(40, check))


def test_a_changed_pickle_is_refused_in_one_line_or_harmless(tmp_path, base, delta):
    written = write_lora(delta, tmp_path / "w.safetensors", base.denoiser, format="peft")
    path = tmp_path / "l.pt"
    torch.save({"state_dict": load(written.read_bytes()), "step": 3}, path)
    content = path.read_bytes()

    def check(rng):
        path.write_bytes(changed_bytes(content, rng))
        return refused(lambda: use(path, base))

    assert any(each(60, check))


def test_a_unets_convolutions_are_tried_too(tmp_path):
    base = base_of(network("sd"))
    path = write_lora(
        lora(base.denoiser, share=0.3), tmp_path / "l.safetensors", base.denoiser, format="kohya"
    )
    tensors = load(path.read_bytes())

    def check(rng):
        save_file(changed_tensors(tensors, rng), path)
        return refused(lambda: read_lora(path, base))

    assert {line is None for line in each(40, check)} == {True, False}, "some of both"
