"""How the nearest known names are offered: in one line, however long or many they are."""

import pickle

import pytest

from smidgen.data.images import UnusableImage
from smidgen.errors import UsageError, closest
from smidgen.files.reading import Unreadable
from smidgen.serving.engine import Full
from smidgen.training.interrupt import Interrupted

ERRORS = (
    UsageError("no"),
    Interrupted("stopped", 15),
    Full(3, seconds=2),
    UnusableImage("damaged", "cut short"),
    Unreadable("a.json is none", "none"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_from_another_process_as_it_was(error):
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert (str(other), other.exit_code, vars(other)) == (str(error), error.exit_code, vars(error))


def test_the_nearest_name_is_offered_and_without_one_all_are():
    assert closest("difit", ["difffit", "lora"]) == '; did you mean "difffit"?'
    assert closest("x", ["difffit", "lora"]) == "; choose from: difffit, lora"
    assert closest("x", []) == "; there are none"


def test_names_of_a_file_are_shown_as_far_as_a_line_holds_them():
    assert len(closest("fd", ["{" * 10_000, "seed"])) < 200
    assert closest("fd", ["{" * 10_000, "seed"]).endswith("…, seed")
    many = [f"class-{number:04}" for number in range(1000)]
    listed = closest("zzz", many)
    assert len(listed) < 1000
    shown, _, rest = listed.removeprefix("; choose from: ").rpartition(" and ")
    assert shown.split(", ") == many[: len(shown.split(", "))]
    assert rest == f"{1000 - len(shown.split(', '))} more"
    assert len(closest("{" * 9_999, ["{" * 10_000])) < 200
