"""What a plan counts: each cell with all that it trains, wherever that acts."""

from __future__ import annotations

from smidgen.study.design import read_design
from smidgen.study.planning import plan_study

RECIPE = """
base = "glyphs-text"
task = "dreambooth"
data = "subjects/owl-ink"
class_name = "owl"
instance_prompt = "a picture of a {token} {class}"
token = "<it>"
[study.factors.method]
word = { method = "textual-inversion", init_word = "sks" }
both = { method = "bitfit+textual-inversion", textual_inversion = { init_word = 'sks' } }
bias = { method = "bitfit", token = "sks" }
"""


def test_words_of_the_text_encoder_are_counted_alone_and_beside_other_methods(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(RECIPE)
    plan = plan_study(read_design(path, tmp_path / "study"))
    word, both, bias = (row["parameters"] for row in plan["cells"])
    assert word == 128  # the width of the encoder
    assert both == word + bias
