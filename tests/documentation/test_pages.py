"""Pages whose examples run offline on what ships are followed as they stand, but for few steps."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

import smidgen
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from tests.documentation.following import follow
from tests.documentation.pages import blocks_of
from tests.tiny.images import write_photos

SUBJECT = {
    "token": "sks",
    "class_name": "dog",
    "instance_prompt": "a picture of a sks dog",
    "class_prompt": "a picture of a dog",
}
SDS = "Score distillation of a relief"
FEW = {
    "explain": ["--num-images", "1", "--times", "1", "--steps", "2"],
    "sample": ["--steps", "2"],
    "evaluate": ["--num-images", "62", "--steps", "2"],
    "train": ["--steps", "1", "--batch-size", "1", "--reward.steps", "2"],
    "sds": ["--steps", "1", "--batch-size", "1"],
}


@pytest.fixture
def runs(folder):
    """Deltas of the shipped bases where the examples have them."""
    generator = torch.Generator().manual_seed(0)

    def save(name, base, method, classes=(), training=None):
        delta = build_delta(method, base, configure(method, {}), classes, generator)
        own = delta.provenance
        delta.provenance = replace(own, training=own.training | (training or {}))
        delta.save(folder / "runs" / name / "delta.safetensors")

    text = smidgen.load_base("glyphs-text")
    save("dog-lora", text, "lora", training={"dreambooth": SUBJECT})
    save("dog-adapter", text, "adapter", training={"dreambooth": SUBJECT})
    save("owl", text, "lora", training={"dreambooth": SUBJECT})
    save("fox", text, "lora")
    save("greek", smidgen.load_base("glyphs"), "difffit", ("alpha", "beta"))
    return folder


@pytest.mark.slow
def test_explaining_and_a_part_of_a_delta(runs):
    explained = blocks_of("docs/explain.md", "What a delta learned")
    parts = blocks_of("docs/sampling.md", "A part of a delta")
    assert explained
    assert parts
    follow([*explained, *parts], FEW)
    for name in ("dog", "greek", "fox"):
        of_it = runs / "explained" / name
        assert (of_it / "differences.png").is_file()
        assert (of_it / "attention.svg").is_file() == (name != "greek")
    assert len(list((runs / "own").glob("*.png"))) == 2


@pytest.mark.slow
def test_rewards_and_reliefs(runs):
    (runs / "prompts.txt").write_text("a picture of a dog\na picture of an owl\n")
    write_photos(runs / "photos", per_class=2)
    rewards, reliefs = blocks_of("docs/reward.md"), blocks_of("docs/sds.md", SDS)
    assert rewards
    assert reliefs
    follow([*rewards, *reliefs], FEW)
    for name in ("liked", "like-photos", "like-classes"):
        assert (runs / "runs" / name / "delta.safetensors").is_file()
    for name in ("owl", "prompt", "a"):
        assert (runs / "relief" / name / "views.png").is_file()


@pytest.mark.slow
def test_changing_restoring_listing_and_repeating(folder):
    blocks = [block for block in blocks_of("docs/sampling.md") if block.language]
    again = [block for block in blocks if "--like" in block.text]
    assert len(again) == 1
    follow(
        [block for block in blocks if block not in again],
        {"sample": ["--steps", "2", "--num-images", "4"]},
    )
    follow(again, {})
    for name in ("changed", "inpainted", "denoised", "upscaled", "grid"):
        record = json.loads((folder / name / "sample.json").read_text())
        assert len(record["images"]) == len(list((folder / name).glob("*.png"))) == 4
    assert (folder / "grid" / "page.html").is_file()
    sizes = {Image.open(path).size for path in (folder / "upscaled").glob("*.png")}
    assert sizes == {(64, 64)}
    (again,), (another,) = ((folder / name).glob("*.png") for name in ("again", "another"))
    assert again.read_bytes() == (folder / "grid" / again.name).read_bytes()
    assert another.read_bytes() != again.read_bytes()
