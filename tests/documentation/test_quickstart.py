"""docs/quickstart.ipynb: its cells are run in order, for few steps and on few pictures."""

import json
from dataclasses import replace

import pytest

import smidgen
from tests.documentation.pages import ROOT
from tests.documentation.reading import read_python

NOTEBOOK = json.loads((ROOT / "docs/quickstart.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def short(monkeypatch):
    """Trainings, samples and measurements of two steps."""
    train, sample, drawn = smidgen.train, smidgen.sample, smidgen.SamplingConfig
    few = {"steps": 2, "batch_size": 4, "progress": False, "warmup_steps": 0}
    monkeypatch.setattr(smidgen, "train", lambda *given, **more: train(*given, **more | few))
    monkeypatch.setattr(
        smidgen, "sample", lambda *given, **more: sample(*given, **more | {"steps": 2})
    )
    monkeypatch.setattr(
        smidgen,
        "SamplingConfig",
        lambda **given: replace(drawn(**given), steps=2, num_images=62),
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small_sets", "short")
def test_the_cells_run_one_after_the_other(folder):
    space = {}
    for cell in CODE:
        exec(cell, space)
    assert space["counted"]["share"] < 0.01
    assert space["measured"]["metrics"]["fd"] > 0
    assert (folder / "greek.safetensors").read_bytes()


def test_the_cells_call_what_there_is():
    for cell in CODE:
        read_python(cell if "import smidgen" in cell else f"import smidgen\n{cell}")


def test_no_output_is_kept():
    for cell in NOTEBOOK["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
