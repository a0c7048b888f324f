"""Results side by side: refused where protocols differ in what matters, and only there."""

import copy

import pytest

from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.compare import compare, difference_text, metric_names
from tests.evaluation.calls import evaluate

from .conftest import class_folder


def document(**changes):
    """A result whose protocol has these values; a dot goes into a nested table."""
    result = {
        "metrics": {"fd": 10.0, "class_agreement": 0.5},
        "baselines": {"class_agreement_by_chance": 0.1, "class_agreement_of_reference": 0.9},
        "warnings": [],
        "protocol": {
            "features": "colours",
            "features_sha256": "abc",
            "resize": "crop",
            "num_images": 100,
            "reference_identity": "r1",
            "class_balance": {"kind": "even", "num_classes": 3},
            "metric_settings": {"kid": {"subset_size": 100}},
            "sampling": {"sampler": "ddpm", "steps": 50, "guidance": 1.5, "seed": 0},
            "versions": {"torch": "2.0"},
        },
    }
    for name, value in changes.items():
        place = result["protocol"]
        *path, last = name.split(".")
        for part in path:
            place = place[part]
        place[last] = value
    return result


def test_a_warning_about_the_whole_result_is_kept_where_it_has_several_features():
    both = document()
    own = {**copy.deepcopy(both), "warnings": ["few images"]}
    both["by_features"] = {"colours": own, "twin": copy.deepcopy(own)}
    both["warnings"] = ["a class is missing", "colours: few images", "twin: few images"]
    rows = compare({"a": both, "b": copy.deepcopy(both)})["rows"]
    assert [row["warnings"] for row in rows] == [both["warnings"], [], both["warnings"], []]


def test_equal_protocols_give_a_row_each_and_no_difference():
    found = compare({"a": document(), "b": document()})
    assert [row["name"] for row in found["rows"]] == ["a", "b"]
    assert found["rows"][0]["metrics"] == {"fd": 10.0, "class_agreement": 0.5}
    assert found["rows"][1]["baselines"]["class_agreement_by_chance"] == 0.1
    assert found["differences"] == found["noted"] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("features_sha256", "def"),
        ("resize", "clean"),
        ("num_images", 99),
        ("num_reference", 7),
        ("reference_identity", "r2"),
        ("class_balance.kind", "uneven"),
        ("class_balance.num_classes", 4),
        ("class_balance.max_per_class", 99),
        ("metric_settings.kid", {"subset_size": 50}),
        ("sampling.sampler", "ddim"),
        ("sampling.steps", 20),
        ("sampling.guidance", 4.0),
        ("sampling.guidance_channels", "first-three"),
        ("sampling.precision", "bf16"),
        ("sampling.guidance_kind", "domain"),
        ("sampling.guidance_interval", [0.2, 0.8]),
        ("sampling", None),
    ],
)
def test_a_difference_that_matters_is_refused_by_name_unless_told(field, value):
    documents = {"a": document(), "b": document(**{field: value})}
    with pytest.raises(UsageError) as refusal:
        compare(documents)
    assert field in str(refusal.value)
    found = compare(documents, any_protocol=True)
    assert any(entry["field"].startswith(field) for entry in found["differences"])
    assert len(found["rows"]) == 2


@pytest.mark.parametrize(
    ("field", "value"), [("sampling.seed", 1), ("versions.torch", "2.1"), ("device", "cuda")]
)
def test_what_may_differ_is_noted(field, value):
    found = compare({"a": document(), "b": document(**{field: value})})
    assert found["differences"] == []
    assert [entry["field"] for entry in found["noted"]] == [field]


def test_a_metric_that_one_result_lacks_is_no_difference():
    other = document(**{"metric_settings": {"neighbours": {"k_precision": 3}}})
    other["metrics"] = {"precision": 0.5, "fd": 9.0}
    found = compare({"a": document(), "b": other})
    assert metric_names(found["rows"]) == ["fd", "precision", "class_agreement"]


def test_blocks_of_several_features_are_compared_each_with_its_own():
    both = document()
    block = {"metrics": {"fd": 3.0}, "protocol": {"features": "twin", "features_sha256": "x"}}
    both["by_features"] = {"twin": block}
    found = compare({"a": both, "b": copy.deepcopy(both)})
    assert [(row["name"], row["features"]) for row in found["rows"]] == [
        *(("a", "colours"), ("a", "twin"), ("b", "colours"), ("b", "twin"))
    ]
    other = copy.deepcopy(both)
    other["by_features"]["twin"]["protocol"]["features_sha256"] = "y"
    with pytest.raises(UsageError, match=r"features_sha256 \(twin\): x in a, y in b"):
        compare({"a": both, "b": other})
    with pytest.raises(UsageError, match="features: "):
        compare({"a": both, "b": document()})


def test_a_difference_is_told_with_each_value_and_long_hashes_short():
    entry = {"field": "sampling", "values": {"a": None, "b": "0123456789abcdef" * 4}}
    assert difference_text(entry) == "sampling: unknown in a, 0123456789ab… in b"


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": None},
        {"metrics": {"fd": "low"}},
        {"metrics": {"kid": {"mean": 1.0}}},
        {"metrics": {"kid": {"mean": 1.0, "std": []}}},
        {"protocol": {}},
        {"protocol": {"features": 5}},
        {"protocol": {"features": "x", "num_images": "ten"}},
        {"protocol": {"features": "x", "num_images": 10**400}},
        {"protocol": {"features": "x", "class_balance": [1]}},
        {"protocol": {"features": "x", "sampling": {"guidance": "high"}}},
        {"protocol": {"features": "x", "metric_settings": 3}},
        {"baselines": {"class_agreement_by_chance": "none"}},
        {"notes": {"fd": "few"}},
        {"warnings": 3},
        {"by_features": {"twin": {}}},
        {"by_features": []},
    ],
)
def test_what_is_no_result_is_refused_by_name_in_one_line(changes):
    """As case A13: values of another type."""
    with pytest.raises(SmidgenError, match="b is no result of smidgen evaluate") as caught:
        compare({"a": document(), "b": document() | changes})
    assert "\n" not in str(caught.value)
    with pytest.raises(SmidgenError, match="b is no result"):
        compare({"a": document(), "b": {}})
    with pytest.raises(UsageError, match="two or more"):
        compare({"a": document()})


def test_results_of_evaluate_compare(tmp_path):
    reference = class_folder(tmp_path / "reference", 4)
    first, second = class_folder(tmp_path / "a", 3, seed=1), class_folder(tmp_path / "b", 3, seed=2)
    documents = {p.name: evaluate(p, reference, features="colours") for p in (first, second)}
    found = compare(documents)
    assert [row["metrics"]["fd"] for row in found["rows"]] == [
        document["metrics"]["fd"] for document in documents.values()
    ]
    fewer = evaluate(class_folder(tmp_path / "c", 2), reference, features="colours")
    with pytest.raises(UsageError, match="num_images: 9 in a, 6 in c"):
        compare({"a": documents["a"], "c": fewer})


def test_kid_is_the_first_column_where_a_result_has_few_images():
    rows = [{"metrics": {"fd": 1.0, "kid": 0.1}, "num_images": count} for count in (10_000, 9_999)]
    assert metric_names(rows[:1]) == ["fd", "kid"]
    assert metric_names(rows) == ["kid", "fd"]
