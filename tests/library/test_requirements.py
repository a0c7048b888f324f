"""Floors and ceilings of metrics."""

import pytest

from smidgen.errors import SmidgenError, UsageError
from smidgen.library.requirements import Requirement, check_result

KID = {"mean": 0.02, "std": 0.004}


def document(**metrics):
    return {"metrics": metrics, "protocol": {"features": "glyphs"}}


def check(text, found):
    (one,) = check_result([Requirement.parse(text)], found, "the result")
    return one


@pytest.mark.parametrize(
    ("text", "metrics", "passed"),
    [
        ("class_agreement=0.8", {"class_agreement": 0.8}, True),
        ("class_agreement=0.8", {"class_agreement": 0.79}, False),
        ("fd=25", {"fd": 25.0}, True),  # lower is better
        ("fd=25", {"fd": 25.1}, False),
        ("kid=0.024", {"kid": KID}, True),  # the worse end of 0.02 +- 0.004
        ("kid=0.023", {"kid": KID}, False),
        ("inception_score=4", {"inception_score": {"mean": 4.2, "std": 0.3}}, False),
        ("clip_i=-0.1", {"clip_i": 0.0}, True),
    ],
)
def test_a_floor_or_a_ceiling_by_the_metrics_own_direction(text, metrics, passed):
    found = check(text, document(**metrics))
    assert found.passed == passed
    assert (found.reason is None) == passed


def test_why_it_fails_has_the_number_and_the_bound():
    assert check("class_agreement=0.8", document(class_agreement=0.5)).reason == (
        "class_agreement is 50.0%; expected at least 80.0%"
    )
    reason = check("kid=0.01", document(kid=KID)).reason
    assert reason == "kid is 0.02000 ± 0.00400; expected at most 0.01000"


@pytest.mark.parametrize("metrics", [{"fd": 3.0}, {"fd": 3.0, "kid": None}])
def test_a_metric_that_is_not_known_is_not_passed(metrics):
    found = check("kid=5", document(**metrics))
    assert not found.passed
    assert "kid is not in the result" in found.reason


def test_features_may_be_named():
    other = {"metrics": {"fd": 30.0, "cmmd": 1.0}, "protocol": {"features": "clip-b32"}}
    found = document(fd=3.0)
    found |= {"by_features": {"glyphs": document(fd=3.0), "clip-b32": other}}
    assert check("fd=10", found).passed  # the first that have it
    assert not check("clip-b32:fd=10", found).passed
    assert check("cmmd=1", found).features == "clip-b32"
    assert not check("dinov2:fd=10", found).passed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agreement=1", 'the metric "agreement"; did you mean "class_agreement"'),
        ("fd", 'require is "fd"; expected METRIC=NUMBER'),
        ("fd=low", "expected METRIC=NUMBER"),
        ("fd=nan", "expected METRIC=NUMBER"),
        (":fd=3", "FEATURES:METRIC=NUMBER"),
    ],
)
def test_what_is_no_requirement(text, message):
    with pytest.raises(UsageError, match=message):
        Requirement.parse(text)


def test_what_is_no_result_is_told():
    with pytest.raises(SmidgenError, match="is no result of smidgen evaluate"):
        check("fd=3", {"metrics": {}})
