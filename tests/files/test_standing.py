"""One rule for an output that is there already: new, to go on with, finished, or refused."""

from pathlib import Path

import pytest

from smidgen.errors import UsageError
from smidgen.files.standing import changed, standing

PLACE = Path("runs/a")


def test_equal_settings_go_on_or_are_finished() -> None:
    settings = {"steps": 4, "lr": None, "classes": ("a", "b")}
    before = {"steps": 4, "classes": ["a", "b"]}
    assert standing(PLACE, "a run", None, settings, finished=False) == "new"
    assert standing(PLACE, "a run", before, settings, finished=False) == "begun"
    assert standing(PLACE, "a run", before, settings, finished=True) == "finished"


def test_other_settings_are_refused_by_name_unless_forced() -> None:
    before, now = {"steps": 4, "seed": 0, "cache": "x"}, {"steps": 5, "seed": 0, "cache": "y"}
    with pytest.raises(UsageError) as caught:
        standing(PLACE, "a run", before, now, finished=True, not_compared=("cache",))
    assert str(caught.value) == (
        "runs/a holds a run of other settings (steps 4 -> 5); give another output, or start over "
        "there with force (--force)"
    )
    assert standing(PLACE, "a run", before, now, finished=True, force=True) == "new"


def test_nothing_and_zero_are_two_values() -> None:
    assert changed({"a": 0}, {}) == ['a 0 -> "none"']
    assert changed({"a": False}, {"a": None}) == ['a false -> "none"']
    assert changed({"a": "none", "b": [], "c": ""}, {}) == []
