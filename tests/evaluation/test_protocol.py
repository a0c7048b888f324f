"""What the numbers depend on, and the words that stand beside them."""

import dataclasses

import pytest

from smidgen.evaluation.protocol import class_balance, metric_order, notes, unseen

from .conftest import colour_extractor

PHOTOGRAPHS = dataclasses.replace(colour_extractor(), domain=None)
LETTERS = colour_extractor()


@pytest.mark.parametrize(
    ("names", "balance"),
    [
        (None, {"kind": "unknown"}),
        ("abab", {"kind": "even", "num_classes": 2, "min_per_class": 2, "max_per_class": 2}),
        ("ababa", {"kind": "even", "num_classes": 2, "min_per_class": 2, "max_per_class": 3}),
        ("aaab", {"kind": "uneven", "num_classes": 2, "min_per_class": 1, "max_per_class": 3}),
    ],
)
def test_classes_in_turn_are_even_and_others_are_not(names, balance):
    assert class_balance(names) == balance


def test_under_ten_thousand_images_kid_comes_first():
    names = ["fd", "precision", "kid"]
    assert metric_order(names, 9_999) == ["kid", "fd", "precision"]
    assert metric_order(names, 10_000) == ["fd", "kid", "precision"]
    assert metric_order(["precision", "fd"], 100) == ["fd", "precision"]
    assert metric_order(["theirs", "fd", "kid"], None) == ["fd", "kid", "theirs"]


def test_a_domain_is_seen_if_every_class_was():
    assert unseen(LETTERS, ["red", "blue"]) is None
    assert '"mauve" and 1 more' in unseen(LETTERS, ["red", "mauve", "pink"])
    assert "nothing says what the images show" in unseen(LETTERS, None)
    assert unseen(PHOTOGRAPHS, ["mauve"]) is None


def test_each_warning_has_its_words_beside_the_numbers_that_it_is_about():
    found = {"num_images": 5, "num_reference": 6, "classes": ["mauve"]}
    warnings, beside = notes(LETTERS, ["fd", "kid", "class_agreement"], **found)
    assert beside == {
        "fd": [
            *("features have not seen this domain", "under 10,000 images"),
            *("5 images for 6 dimensions", "6 reference images for 6 dimensions"),
        ],
        "kid": ["features have not seen this domain"],
    }
    assert len(warnings) == 4
    assert notes(LETTERS, ["kid"], **(found | {"classes": ["red"]})) == ([], {})
    enough = {"num_images": 10_000, "num_reference": 0, "classes": ["red"]}
    assert notes(LETTERS, ["fd"], **enough) == ([], {})
