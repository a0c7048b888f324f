"""Which metrics are computed on which features; what cannot be is refused by name."""

import dataclasses

import pytest
import torch

from smidgen.errors import UsageError
from smidgen.evaluation import features
from smidgen.evaluation.names import split_names
from smidgen.evaluation.table import INCEPTION_HEAD
from tests.evaluation.calls import make_plan

from .conftest import colour_extractor


@pytest.fixture(autouse=True)
def _several_extractors(monkeypatch):
    def like(name, **changes):
        return lambda device, **_: dataclasses.replace(colour_extractor(), name=name, **changes)

    table = {
        "colours": like("colours"),
        "inception": like("inception", heads={INCEPTION_HEAD: ("0", "1", "2")}),
        "dinov2": like("dinov2", heads={}),
        "clip-b32": like("clip-b32", heads={}, text=lambda texts: torch.ones(len(texts), 6)),
    }
    monkeypatch.setattr(features, "EXTRACTORS", table)


def test_by_default_distances_everywhere_and_agreement_where_classes_have_names():
    plan = make_plan("colours,inception, dinov2")
    assert [extractor.name for extractor in plan.extractors] == ["colours", "inception", "dinov2"]
    assert plan.first.name == "colours"
    assert plan.metrics == {
        "colours": {"fd", "kid", "class_agreement"},
        "inception": {"fd", "kid"},
        "dinov2": {"fd", "kid"},
    }
    assert not plan.asked


def test_asked_metrics_go_to_the_features_that_they_are_defined_on():
    plan = make_plan(
        ["inception", "clip-b32", "dinov2"],
        ["recall", "inception_score", "clip_t", "clip_i", "dino_i", "cmmd"],
    )
    assert plan.metrics == {
        "inception": {"recall", "inception_score"},
        "clip-b32": {"recall", "clip_t", "clip_i", "cmmd"},
        "dinov2": {"recall", "dino_i"},
    }
    assert plan.needs(plan.first, "features")
    assert not plan.needs(plan.first, "texts")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "features are none"),
        (("colours,colours",), "name each once"),
        (("colors",), 'unknown features "colors"'),
        (("colours", ["fdd"]), 'unknown metric "fdd"; did you mean "fd"'),
        (("colours", ["clip_t"]), "clip_t needs the features clip-b32 or clip-l14 or clip-glyphs"),
        (("dinov2", ["class_agreement"]), "needs features with class names"),
        (("colours,clip-b32", ["clip_i"]), "none of the metrics clip_i is defined on colours"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_plan(*arguments)
    with pytest.raises(UsageError, match="where the class name belongs"):
        make_plan("colours", prompt="a photo")


def test_of_several_features_each_gets_the_options_that_it_takes(monkeypatch, tmp_path):
    given = {}
    table = {
        name: lambda device, name=name, **options: (
            given.update({name: options}) or dataclasses.replace(colour_extractor(), name=name)
        )
        for name in ("glyphs", "inception", "dinov2")
    }
    monkeypatch.setattr(features, "EXTRACTORS", table)
    make_plan("glyphs,inception,dinov2", weights=tmp_path, resize="legacy")
    assert given == {
        "glyphs": {},
        "inception": {"weights": tmp_path, "resize": "legacy"},
        "dinov2": {"weights": tmp_path},
    }
    with pytest.raises(UsageError, match="take no weights"):
        make_plan("glyphs", weights=tmp_path)
    with pytest.raises(UsageError, match="no resize"):
        make_plan("glyphs,dinov2", resize="legacy")


def test_names_come_with_commas_or_one_by_one():
    assert split_names("a, b,,c") == ["a", "b", "c"]
    assert split_names(["a,b", "c"]) == ["a", "b", "c"]
