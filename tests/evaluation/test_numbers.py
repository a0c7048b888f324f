"""The table's functions get what their rows need, once a group; what is no number is unknown."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from smidgen.evaluation import table
from smidgen.evaluation.accumulate import Accumulator
from smidgen.evaluation.metrics import Gaussian
from smidgen.evaluation.numbers import Sets, compute
from smidgen.evaluation.statistics import Statistics
from smidgen.evaluation.table import METRICS, Found, Metric

from .conftest import colour_extractor

FEATURES = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def sets(**known) -> Sets:
    accumulator = Accumulator(6, (), {"kid"})
    accumulator.update(FEATURES, {})
    made = accumulator.result()
    reference = Statistics(
        **{
            "gaussian": Gaussian(mean=torch.zeros(6), covariance=torch.eye(6), count=20),
            **{"classes": (), "class_numbers": torch.zeros(0, dtype=torch.long), "predictions": {}},
            **{"extractor": "", "resize": "", "identity": "", "features": FEATURES + 0.1},
            **known,
        }
    )
    return Sets(
        made=made, known=reference, extractor=colour_extractor(), intended=None, prompt="a {}"
    )


@pytest.fixture
def calls(monkeypatch):
    """A row whose function answers what the test puts into `answers`, and how it was called."""
    found = SimpleNamespace(answers=[], given=[])

    def function(*given, **settings):
        found.given.append((given, settings))
        return found.answers.pop(0)

    monkeypatch.setattr(table, "made_up", function, raising=False)
    row = Metric(
        label="made up",
        help="",
        function="smidgen.evaluation.table:made_up",
        needs="gaussian",
        settings={"power": 2, "size": 9},
    )
    monkeypatch.setitem(METRICS, "made_up", row)
    return found


def test_a_function_gets_what_its_row_needs_and_its_settings_are_kept(calls):
    both = sets()
    calls.answers = [Found(value=3.0, settings={"size": 4}, notes=("few",))]
    found, reasons = compute(["made_up"], both)
    assert reasons == []
    assert found["made_up"] == Found(value=3.0, settings={"power": 2, "size": 4}, notes=("few",))
    ((given, settings),) = calls.given
    assert settings == {"power": 2, "size": 9}
    a, b = both.made.gaussian, both.known.gaussian
    expected = (a.mean, a.covariance, b.mean, b.covariance)
    assert all(one is other for one, other in zip(given, expected, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"mean": 1.0, "std": float("nan")}])
def test_a_number_that_is_not_finite_is_unknown_and_says_so(calls, value):
    calls.answers = [value]
    found, (reason,) = compute(["made_up"], sets())
    assert found["made_up"].value is None
    assert "made_up unknown: it comes out as" in reason


def test_a_group_is_called_once_and_each_of_its_rows_has_its_number(calls, monkeypatch):
    row = replace(METRICS["made_up"], group="pair")
    for name in ("made_up", "second"):
        monkeypatch.setitem(METRICS, name, row)
    calls.answers = [{"made_up": 1.0, "second": 2.0}]
    found, _ = compute(["made_up", "second"], sets())
    assert [found[name].value for name in ("made_up", "second")] == [1.0, 2.0]
    assert len(calls.given) == 1


def test_too_few_images_or_a_reference_without_features_are_the_reason(calls, monkeypatch):
    row = replace(METRICS["made_up"], needs="features", min_images=21)
    monkeypatch.setitem(METRICS, "made_up", row)
    assert compute(["made_up"], sets())[1] == ["made_up unknown: 20 images; it takes 21"]
    (reason,) = compute(["made_up"], sets(features=None))[1]
    assert "the reference holds no features" in reason
    assert calls.given == []
