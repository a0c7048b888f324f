"""Recipes: reading, checking and writing them."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest

from smidgen.errors import UsageError
from smidgen.files.settings import (
    check_values,
    describe,
    flatten,
    read_recipe,
    recipe_text,
    settings_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    data: Path
    steps: int = 10
    lr: float | None = None
    clip: float | None = 1.0
    flip: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    trackers: tuple[str, ...] = ("tensorboard",)
    note: str | None = None


SETTINGS = settings_of(Run)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "run",
    [
        Run(data=Path("photos")),
        Run(data=Path('odd "name"\\ \n\t é \x7f'), steps=-3, lr=1e-5, clip=None, flip=True),
        Run(data=Path("x"), lr=math.inf, trackers=(), precision="bf16", note="none of it"),
        Run(data=Path("x"), trackers=("a,b", "c d"), lr=3.0),
    ],
)
def test_a_written_recipe_reads_back_as_the_same_config(run, tmp_path):
    path = write(tmp_path, recipe_text(flatten(run), SETTINGS))
    assert Run(**read_recipe(path, SETTINGS)) == run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    num_rows: int = 2
    flip: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole:
    one: Part = dataclasses.field(default_factory=Part)
    two: Part = dataclasses.field(default_factory=Part)


def test_the_fields_of_an_inner_dataclass_have_dotted_names(tmp_path):
    settings = settings_of(Run, Whole)
    assert settings["one.num_rows"].flag == "--one.num-rows"
    assert settings["one.flip"].no_flag == "--one.no-flip"
    assert settings["flip"].no_flag == "--no-flip"
    values = flatten(Whole(one=Part(num_rows=5)))
    assert values == {"one.num_rows": 5, "one.flip": False, "two.num_rows": 2, "two.flip": False}
    path = write(tmp_path, recipe_text(values, settings))
    assert read_recipe(path, settings) == values
    path = write(tmp_path, "[one]\nnum-rows = 5\n")
    assert read_recipe(path, settings) == {"one.num_rows": 5}
    with pytest.raises(UsageError, match=r'unknown key "one.rows"; .*"one.num_rows"'):
        read_recipe(write(tmp_path, "[one]\nrows = 5\n"), settings)


def test_hyphens_in_keys_and_integers_for_numbers_are_taken(tmp_path):
    values = read_recipe(write(tmp_path, 'data = "x"\nlr = 1\n'), SETTINGS)
    assert values == {"data": Path("x"), "lr": 1.0}
    assert type(values["lr"]) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes = 3", r'unknown key "stpes"; did you mean "steps"\?'),
        ("zzz = 3", r'unknown key "zzz"; choose from: data, steps'),
        ("steps = 3.5", "steps is 3.5; expected an integer"),
        ("steps = true", "steps is true; expected an integer"),
        ('lr = "fast"', 'lr is "fast"; expected a number or "none"'),
        ("flip = 1", "flip is 1; expected true or false"),
        ('precision = "int8"', 'precision is "int8"; expected one of: fp32, bf16'),
        ('trackers = "tensorboard"', "trackers is .*; expected a list, each text"),
        ("trackers = [1]", "trackers is .*; expected a list, each text"),
        ("[steps]\na = 1", "steps is .*; expected an integer"),
        ("a = 1\nb = = 2", r"recipe.toml is not valid TOML: .*line 2"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_reason_in_one_line(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as refusal:
        read_recipe(write(tmp_path, text), SETTINGS)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Literal["a", "b"], "one of: a, b"),
        (Literal["a", "b"] | Literal["auto"], "one of: a, b, auto"),
        (Literal["a", "b"] | None, "one of: a, b, none"),
        (int | Literal["auto"], 'an integer or "auto"'),
        (float | None, 'a number or "none"'),
        (int | str | None, 'an integer or text or "none"'),
        (tuple[Literal["a", "b"], ...], "a list, each one of: a, b"),
    ],
)
def test_all_choices_are_listed_once(annotation, words):
    assert describe(annotation) == words


def test_a_recipe_that_is_absent_a_folder_or_no_text_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "binary.toml"):
        with pytest.raises(UsageError, match="recipe"):
            read_recipe(path)


def test_values_are_checked_under_the_name_of_their_source():
    with pytest.raises(UsageError, match="flags: steps is"):
        check_values({"steps": "x"}, SETTINGS, "flags")


def test_two_configs_may_not_share_a_field():
    with pytest.raises(ValueError, match="data"):
        settings_of(Run, Run)
