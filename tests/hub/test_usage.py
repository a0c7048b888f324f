"""What a card tells its reader to run does run."""

import dataclasses
import re
import shlex

import pytest
import torch

import smidgen as package
from smidgen.core.delta import Delta
from smidgen.core.sites import Site
from smidgen.core.word import Word
from smidgen.hub import usage
from smidgen.hub.config import PushConfig
from smidgen.hub.push import pack
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.pretrained import load_base
from tests.tiny.deltas import provenance

REPO = "owner/dog"
PROMPT = "a picture of a sks dog"
ONE_STEP = ("--steps", "1", "--sampler", "ddim")


@pytest.fixture(scope="module")
def base():
    return load_base("glyphs-text")


def delta_of(base, method: str, **options) -> Delta:
    generator = torch.Generator().manual_seed(0)
    delta = build_delta(method, base, configure(method, options), (), generator)
    training = {"dreambooth": {"instance_prompt": PROMPT}}
    delta.provenance = dataclasses.replace(delta.provenance, training=training)
    return delta


def blocks(delta: Delta, folder) -> list[tuple[str, str]]:
    """Language and text of the blocks of code in the card of a delta."""
    delta.save(folder / "delta.safetensors")
    card = pack(PushConfig(source=folder / "delta.safetensors", repo=REPO)).card
    return re.findall(r"````(\w*)\n(.*?)````", card.text, re.DOTALL)


@pytest.mark.slow
def test_every_block_of_a_card_runs(hub, base, tmp_path, monkeypatch, smidgen):
    delta = delta_of(base, "lora", rank=1)
    here, shell, in_diffusers, convert = blocks(delta, tmp_path)
    package.push(tmp_path / "delta.safetensors", REPO)
    monkeypatch.chdir(tmp_path)
    sample = package.sample
    monkeypatch.setattr(package, "sample", lambda *args, **given: sample(*args, steps=1, **given))
    space = {}
    exec(here[1], space)
    assert len(space["images"]) == 4
    for line in (*shell[1].splitlines(), convert[1].strip()):
        program, *arguments = shlex.split(line)
        assert program == "smidgen"
        assert smidgen(*arguments, *(ONE_STEP if arguments[0] == "sample" else ())).code == 0, line
    assert len(list((tmp_path / "samples").glob("*.png"))) == 4
    short = in_diffusers[1].replace(").images", ", num_inference_steps=1).images")
    assert short != in_diffusers[1]
    exec(short, space)
    assert space["image"].size == (32, 32)
    space["pipe"].load_lora_weights("lora.safetensors")


def test_a_word_goes_to_diffusers_as_a_word():
    word = Word(Site("a", "in"), Site("a"), "<owl>", 9, 9, torch.zeros(2, 3))
    delta = Delta({"word": word}, provenance(host="unet"))
    text = "".join(usage.in_diffusers(delta, REPO, "owner/base"))
    assert "--format embeddings" in text
    assert "attach" not in text  # its tokenizer there does not know the word


def test_edits_of_text_encoders_are_attached_to_them_and_in_no_lora_file(base):
    delta = delta_of(base, "lora", rank=1)
    next(iter(delta.edits.values())).component = "text_encoder"
    text = "\n".join(usage.in_diffusers(delta, REPO, "owner/base"))
    assert 'delta.attach(pipe.text_encoder, component="text_encoder")' in text
    assert "delta.attach(pipe.unet)" in text
    assert "--format peft" not in text


@pytest.mark.parametrize(("method", "folds"), [("difffit", True), ("lora", True), ("vpt", False)])
def test_a_dit_goes_to_diffusers_folded_where_it_folds(method, folds):
    base = load_base("glyphs")
    generator = torch.Generator().manual_seed(0)
    delta = build_delta(method, base, configure(method, {}), ["a", "z"], generator)
    assert ("smidgen fold" in "".join(usage.in_diffusers(delta, REPO, "glyphs"))) == folds
