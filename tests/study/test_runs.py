"""What a run of a study is made of."""

from __future__ import annotations

from smidgen.study.design import read_design
from smidgen.study.runs import runs_of

RECIPE = """
output = "runs/x"
base = "glyphs"
[study]
blocks = ["data"]
[study.factors]
method = ["bitfit", "difffit"]
[study.factors.data]
food = { data = "food-101", layout = "food-101", reference = "food-101" }
sun = { data = "SUN397", layout = "sun397", split = "test-01", reference = "SUN397" }
other = { data = "photos", split = "a", reference = "real" }
"""


def evaluations(path, text):
    path.write_text(text)
    return {run.cell["data"]: run.request.evaluation for run in runs_of(read_design(path))}


def test_a_reference_that_is_the_data_is_read_in_its_layout_and_split(tmp_path):
    found = evaluations(tmp_path / "study.toml", RECIPE)
    read = {name: (one.layout, one.split) for name, one in found.items()}
    assert read["food"] == ("food-101", "train")  # the layout's default
    assert read["sun"] == ("sun397", "test-01")
    assert read["other"] == ("folder", None)


def test_how_a_reference_is_read_may_be_said_for_all(tmp_path):
    text = RECIPE + '[study.evaluation]\nsplit = "test"\n'
    found = evaluations(tmp_path / "study.toml", text.replace("other = {", "# other = {"))
    assert {one.split for one in found.values()} == {"test"}
