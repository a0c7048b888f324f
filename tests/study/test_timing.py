"""What a training costs: operations against those of the layers, and which time.json is taken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from smidgen.api.planning import flops_of_image
from smidgen.files.writing import write_json
from smidgen.models.pretrained import load_base
from smidgen.study.costs import TIMES, requests_of, timed_settings, times_of
from smidgen.study.design import read_design
from smidgen.study.timing import gflops_of_base, time_study
from smidgen.training.config import RunConfig, TrainingConfig

RECIPE = """
base = "glyphs"
batch_size = 3
steps = 4
precision = "fp32"
num_threads = 1
[study]
against = "full"
[study.pretraining]
glyphs = {{ "32" = 1000 }}
[study.factors]
data = ["hebrew"]
[study.factors.method]
full = {{ method = "full" }}
bitfit = {{ method = "bitfit" }}
begun = {{ method = "bitfit", {more} init_from = {{ steps = 2 }} }}
"""


@pytest.fixture
def design(tmp_path):
    def read(more=""):
        text = RECIPE.format(more=more).replace("[study]", '[study]\nblocks = ["data"]')
        (tmp_path / "study.toml").write_text(text)
        return read_design(tmp_path / "study.toml", tmp_path / "study")

    return read


def forward_flops(network: nn.Module, latent_shape: tuple[int, ...]) -> int:
    """2 x inputs x outputs of each row that a linear or the patches' convolution multiplies."""
    counted = []

    def count(module, arguments, output):
        counted.append(2 * module.weight[0].numel() * output.numel())

    kinds = (nn.Linear, nn.Conv2d)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        network(torch.randn(1, *latent_shape), torch.zeros(1).long(), torch.zeros(1).long())
    for hook in hooks:
        hook.remove()
    return sum(counted)


def test_full_costs_three_forward_passes_and_frozen_weights_save_one_of_them():
    base = load_base("glyphs")
    forward = forward_flops(base.denoiser, base.latent_shape)

    def passes(method):
        training = TrainingConfig(precision="fp32")
        config = RunConfig(data=Path("x"), output=Path("y"), method=method, training=training)
        return flops_of_image(base, config.resolved(), 5) / forward

    assert passes("full") == pytest.approx(3, abs=0.02)  # nothing goes back to what is not trained
    assert passes("bitfit") == pytest.approx(2, abs=0.02)


@pytest.mark.slow
def test_arms_are_timed_in_turn_and_all_that_came_before_is_counted(design):
    study = design()
    turns: list[str] = []
    document = time_study(study, rounds=1, tell=turns.append)
    assert len(turns) == 1
    arms, left_out = document["arms"], document["left_out"]
    assert (set(arms), left_out) == ({"full", "bitfit", "begun"}, {})
    assert arms["full"]["ratio"] == [1, 1, 1]
    for arm in arms.values():
        assert arm["step_ms"][0] > 0
        assert arm["gflops"] == pytest.approx(4 * arm["step_gflops"])
    assert arms["begun"]["gflops_before"] == pytest.approx(arms["bitfit"]["gflops"] / 2)
    # a base's training is one of all weights: a third of an image's step is in a batch of three
    a_thousand = 1000 * arms["full"]["step_gflops"] / 3
    assert arms["bitfit"]["gflops_of_base"] == pytest.approx(a_thousand, rel=0.01)
    requests, _ = requests_of(study)
    twice = gflops_of_base(requests["full"], {"32": 2000})
    assert twice == pytest.approx(2 * arms["full"]["gflops_of_base"])


def test_what_was_timed_with_other_settings_is_told_and_not_taken(design):
    study = design()
    requests, _ = requests_of(study)
    numbers = {"step_ms": [1, 1, 1], "ratio": [1, 1, 1], "step_gflops": 1, "gflops": 1}
    arms = {
        name: numbers | {"settings": timed_settings(study, one)} for name, one in requests.items()
    }
    write_json({"reference": "full", "rounds": 1, "threads": 1, "arms": arms}, study.output / TIMES)
    times, notes = times_of(study)
    assert times is not None
    assert (set(times.arms), notes) == ({"full", "bitfit", "begun"}, [])
    times, notes = times_of(design("batch_size = 5,"))
    assert times is not None
    assert set(times.arms) == {"full", "bitfit"}
    assert notes == ["begun was timed with other settings (batch_size 3 -> 5)"]
    write_json({"arms": 1}, study.output / TIMES)
    assert times_of(study) == (None, [])
