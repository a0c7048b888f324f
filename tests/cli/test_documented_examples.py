"""The examples of docs/explain.md and docs/sampling.md are run as they stand, but for few steps."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import smidgen as package
from smidgen.methods import configure
from smidgen.methods.build import build_delta

DOCS = Path(__file__).parents[2] / "docs"
SUBJECT = {
    "token": "sks",
    "class_name": "dog",
    "instance_prompt": "a picture of a sks dog",
    "class_prompt": "a picture of a dog",
}
FEW = {
    "explain": ["--num-images", "1", "--times", "1", "--steps", "2"],
    "sample": ["--steps", "2"],
    "evaluate": ["--num-images", "62", "--steps", "2"],
    "compare": [],
}


def examples(page: str, section: str) -> list[list[str]]:
    """The commands of the code blocks behind a heading (of the page: before the first one)."""
    text = (DOCS / page).read_text(encoding="utf-8")
    part = next(
        one for one in re.split(r"^#+ ", text, flags=re.MULTILINE) if one.startswith(section)
    )
    blocks = re.findall(r"```\n(.*?)```", part, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("smidgen ")]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Deltas of the shipped bases where the examples have them."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)

    def save(name, base, method, classes=(), training=None):
        delta = build_delta(method, base, configure(method, {}), classes, generator)
        own = delta.provenance
        delta.provenance = replace(own, training=own.training | (training or {}))
        delta.save(tmp_path / "runs" / name / "delta.safetensors")

    text = package.load_base("glyphs-text")
    save("dog-lora", text, "lora", training={"dreambooth": SUBJECT})
    save("dog-adapter", text, "adapter", training={"dreambooth": SUBJECT})
    save("fox", text, "lora")
    save("greek", package.load_base("glyphs"), "difffit", ("alpha", "beta"))


@pytest.mark.usefixtures("runs")
def test_the_examples_run(smidgen, tmp_path):
    commands = examples("explain.md", "What a delta learned")
    assert len(commands) == 3
    parts = examples("sampling.md", "A part of a delta")
    assert [command[0] for command in parts] == ["sample", "evaluate", "evaluate", "compare"]
    for verb, *arguments in [*commands, *parts]:
        outcome = smidgen(verb, *arguments, *FEW[verb])
        assert outcome.code == 0, (verb, arguments, outcome.err)
    for name in ("dog", "greek", "fox"):
        folder = tmp_path / "explained" / name
        assert (folder / "differences.png").is_file()
        assert (folder / "attention.svg").is_file() == (name != "greek")
    assert len(list((tmp_path / "own").glob("*.png"))) == 2
