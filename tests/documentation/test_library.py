"""docs/library.md is followed as it stands, but for few steps and pictures."""

import shutil

import numpy as np
import pytest
from PIL import Image

from smidgen.cli.main import main
from smidgen.data.embedded_sets import load_set
from smidgen.library.record import read_record
from tests.documentation.pages import blocks_of
from tests.documentation.reading import read_command

FEW = {
    "train-many": [
        *("--steps", "1", "--validate-every", "1", "--batch-size", "2"),
        *("--validation-share", "0.2", "--trackers"),
    ],
    "evaluate": ["--num-images", "62", "--steps", "2"],
    "gate": ["--num-images", "4", "--steps", "2"],
}


@pytest.fixture
def scripts(folder):
    """Four pictures of each of two letters."""
    greek = load_set("greek")
    for label in range(2):
        place = folder / "scripts" / "greek" / greek.class_names[label]
        place.mkdir(parents=True)
        for number, pixels in enumerate(greek.images(np.flatnonzero(greek.label == label)[:4])):
            Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def commands(section):
    blocks = [one for one in blocks_of("docs/library.md", section) if not one.language]
    return [words[1:] for block in blocks for words in block.commands()]


def reasons(run):
    """Why the gate refused the delta of this run."""
    return " ".join(read_record(run / "delta.safetensors").reasons)


@pytest.mark.slow
def test_a_library_is_trained_judged_and_looked_at(scripts, capsys):
    train, evaluate, gate, serve = commands("A library of deltas")
    for verb, *arguments in (train, evaluate):
        assert main([verb, *arguments, *FEW[verb]]) == 0
    assert main(gate) == 1  # a step makes no delta that passes
    assert "class_agreement is " in reasons(scripts / "library" / "greek")
    assert read_command(["smidgen", *serve])["serving"].gated

    shutil.copytree(scripts / "library", scripts / "runs")
    (copies,) = commands("Copies of training pictures")
    assert main([*copies, *FEW["gate"]]) == 1
    assert "about 22.2% of other real ones" in reasons(scripts / "runs" / "greek")

    (orphans,) = commands("When the base changes")
    capsys.readouterr()
    assert main(orphans) == 0
    assert "greek  fits" in capsys.readouterr().out
