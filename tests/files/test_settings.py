"""Flags' texts, recipes and Python keywords become settings by one table, in the same words."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from smidgen.errors import UsageError
from smidgen.files.settings import (
    NO_FLAG,
    SWITCH,
    Text,
    check_values,
    convert,
    describe,
    flatten,
    make,
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


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def checked(path: Path, *configs: type) -> dict[str, Any]:
    return check_values(read_recipe(path), *configs, source=str(path))


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
    path = write(tmp_path, recipe_text(flatten(run), settings_of(Run)))
    assert Run(**checked(path, Run)) == run


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
    assert settings["one.flip"].flags == ("--one.flip", "--one.no-flip")
    assert settings["flip"].flags == ("--flip", "--no-flip")
    assert settings["one.num_rows"].flags == ("--one.num-rows",)
    values = flatten(Whole(one=Part(num_rows=5)))
    assert values == {"one.num_rows": 5, "one.flip": False, "two.num_rows": 2, "two.flip": False}
    path = write(tmp_path, recipe_text(values, settings))
    assert checked(path, Run, Whole) == values
    path = write(tmp_path, "[one]\nnum-rows = 5\n")
    assert checked(path, Run, Whole) == {"one.num_rows": 5}
    with pytest.raises(UsageError, match=r'unknown key "one.rows"; .*"one.num_rows"'):
        checked(write(tmp_path, "[one]\nrows = 5\n"), Run, Whole)
    with pytest.raises(UsageError, match=r"recipe.toml: one is 5; expected its options by name"):
        checked(write(tmp_path, "one = 5\n"), Run, Whole)


def test_hyphens_in_keys_and_integers_for_numbers_are_taken(tmp_path):
    values = checked(write(tmp_path, 'data = "x"\nlr = 1\n'), Run)
    assert values == {"data": Path("x"), "lr": 1.0}
    assert type(values["lr"]) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stpes = 3", r'unknown key "stpes"; did you mean "steps"\?'),
        ("zzz = 3", r'unknown key "zzz"; choose from: data, steps'),
        ('"a\\nb" = 3', r'unknown key "a\\nb"'),
        ("steps = 3.5", "steps is 3.5; expected an integer"),
        ("steps = true", "steps is true; expected an integer"),
        ('lr = "fast"', 'lr is "fast"; expected a number or "none"'),
        ("flip = 1", "flip is 1; expected true or false"),
        ('precision = "int8"', 'precision is "int8"; expected one of: fp32, bf16'),
        ('trackers = "tensorboard"', "trackers is .*; expected a list, each text"),
        ("trackers = [1]", "trackers is .*; expected a list, each text"),
        ("[steps]\na = 1", "steps is .*; expected an integer"),
        ('data = "a\\u0000b"', r'data is "a\\u0000b"; expected a path'),
        (f"lr = 1{'0' * 400}", r"lr is 10+\.\.\.; expected a number"),
        ("a = 1\nb = = 2", r"recipe.toml: not valid TOML: .*line 2"),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_reason_in_one_line(text, message, tmp_path):
    with pytest.raises(UsageError, match=message) as refusal:
        checked(write(tmp_path, text), Run)
    assert "\n" not in str(refusal.value)


KINDS = {  # a type, and what a flag and Python give for the same value
    "integer": (int, Text("8"), 8),
    "number": (float, Text("1e-4"), 1e-4),
    "whole number": (float, Text("-3"), -3),
    "infinity": (float | None, Text("-inf"), -math.inf),
    "text": (str, Text("none"), "none"),
    "empty text": (str, Text(""), ""),
    "path": (Path, Text("a b/c"), "a b/c"),
    "choice": (Literal["a", "b"], Text("b"), "b"),
    "choice or number": (int | Literal["auto"], Text("auto"), "auto"),
    "number or choice": (int | Literal["auto"], Text("3"), 3),
    "number before text": (int | str | None, Text("8"), 8),
    "none": (float | None, Text("none"), None),
    "none, not text": (str | None, Text("none"), "none"),
    "none of choices": (Literal["a"] | None, Text("none"), None),
    "none as it was shown": (int | None, Text("None"), None),
    "list": (tuple[float, ...], [Text("1"), Text("2.5")], [1, 2.5]),
    "choices": (tuple[Literal["x", "y"], ...], [Text("x"), Text("y")], ["x", "y"]),
    "no items": (tuple[str, ...], [], ()),
    "sequence": (str | Sequence[str], Text("a,b"), "a,b"),
}


@pytest.mark.parametrize(("kind", "text", "value"), KINDS.values(), ids=KINDS)
def test_a_flags_text_and_a_python_value_become_the_same(kind, text, value):
    converted = convert(text, kind, "x")
    assert converted == convert(value, kind, "x")
    items = converted if isinstance(converted, tuple) else (converted,)
    assert not any(isinstance(item, Text) for item in items)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (int, "ten", "ten"),
        (int | None, "1e3", "1e3"),
        (float, "fast", "fast"),
        (Literal["a", "b"] | None, "c", "c"),
        (tuple[int, ...], ["1", "b"], ["1", "b"]),
        (tuple[Literal["x"], ...], ["x", "z"], ["x", "z"]),
    ],
)
def test_a_wrong_text_and_a_wrong_python_value_are_refused_in_the_same_words(kind, text, value):
    text = [Text(item) for item in text] if isinstance(text, list) else Text(text)
    with pytest.raises(UsageError) as of_flag:
        convert(text, kind, "x")
    with pytest.raises(UsageError) as of_python:
        convert(value, kind, "x")
    assert str(of_flag.value) == str(of_python.value)


def test_text_that_stands_for_a_number_does_so_in_flags_only():
    for kind in (int, float, int | None):
        with pytest.raises(UsageError, match='x is "8"'):
            convert("8", kind, "x")
    for kind in (int, float):
        with pytest.raises(UsageError, match="x is true"):
            convert(True, kind, "x")


def test_numbers_of_numpy_become_those_of_python():
    run = make(Run, {"data": "x", "steps": np.int64(3), "lr": np.float64(0.5), "clip": np.int32(2)})
    assert [type(value) for value in (run.steps, run.lr, run.clip)] == [int, float, float]
    assert recipe_text(flatten(run), settings_of(Run)).splitlines()[1:3] == [
        "steps = 3",
        "lr = 0.5",
    ]


def test_a_config_is_made_of_python_values_with_unknown_names_refused():
    made = make(Run, {"data": "x", "trackers": ["a"], "lr": 1})
    assert made == Run(data=Path("x"), trackers=("a",), lr=1.0)
    with pytest.raises(UsageError, match=r'^unknown setting "stpes"; did you mean "steps"\?$'):
        make(Run, {"stpes": 3})
    with pytest.raises(UsageError, match=r'^steps is "ten"; expected an integer$'):
        make(Run, {"steps": "ten"})
    with pytest.raises(UsageError, match=r'^lora: unknown option "rnak"; choose from: data, '):
        make(Run, {"rnak": 3}, source="lora", kind="option")
    with pytest.raises(UsageError, match=r'^full: unknown option "rank"; there are none$'):
        make(dataclasses.make_dataclass("Config", []), {"rank": 3}, source="full", kind="option")


def test_a_config_within_a_config_is_made_of_its_values_or_given_whole():
    for given in ({"num_rows": 5}, Part(num_rows=5)):
        assert make(Whole, {"one": given}) == Whole(one=Part(num_rows=5))
    with pytest.raises(UsageError, match=r"^one is 3; expected its options by name$"):
        make(Whole, {"one": 3})
    with pytest.raises(UsageError, match=r'^one.num_rows is "a"; expected an integer$'):
        make(Whole, {"one": {"num_rows": "a"}})


def test_a_field_may_be_no_setting_or_a_flag_without_its_opposite():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Marked:
        held: Any = dataclasses.field(default=None, metadata=NO_FLAG)
        loud: bool = dataclasses.field(default=False, metadata=SWITCH)

    assert list(settings_of(Marked)) == ["loud"]
    assert settings_of(Marked)["loud"].flags == ("--loud",)
    assert flatten(Marked(held=Run(data=Path("x")))) == {"loud": False}
    with pytest.raises(UsageError, match='unknown setting "held"'):
        make(Marked, {"held": 3})


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
        with pytest.raises(UsageError, match="recipe") as refusal:
            read_recipe(path)
        assert "\n" not in str(refusal.value)


def test_a_recipe_that_is_a_pipe_a_device_or_far_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "device.toml").symlink_to("/dev/zero")
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(100 * 2**20)
    for name, reason in {"pipe": "ordinary", "device": "ordinary", "large": "bytes"}.items():
        with pytest.raises(UsageError, match=f"cannot read the recipe .*{name}.toml: .*{reason}"):
            read_recipe(tmp_path / f"{name}.toml")


def test_values_are_checked_under_the_name_of_their_source():
    with pytest.raises(UsageError, match="flags: steps is"):
        check_values({"steps": "x"}, Run, source="flags")


def test_two_configs_may_not_share_a_field():
    with pytest.raises(ValueError, match="data"):
        settings_of(Run, Run)
