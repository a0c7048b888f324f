"""What is read is checked before it is used; whatever a file holds, the answer is one line."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from smidgen.files.reading import (
    Unreadable,
    fit,
    parse_json,
    read_bytes,
    read_json,
    read_toml,
    size_of,
)


class Point(msgspec.Struct):
    x: int
    name: str = ""


def test_a_document_comes_back_as_its_type(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 3, "name": "a", "more": [1]}')
    assert read_json(tmp_path / "a.json", Point) == Point(x=3, name="a")
    assert read_json(tmp_path / "a.json", dict[str, Any])["more"] == [1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"x": "3"}',
        '{"x": null}',
        '{"x": 1e400}',
        '{"name": "a"}',
        '{"x": 1, "more": ' + "[" * 100_000 + "]" * 100_000 + "}",
        b"\xff\xfe",
    ],
)
def test_another_document_is_one_line_with_the_place(tmp_path: Path, text: str | bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Unreadable) as caught:
        read_json(path, Point)
    assert str(caught.value) == f"cannot read {path}: {caught.value.reason}"
    assert "\n" not in str(caught.value)


def test_no_document_is_deeper_than_what_later_recurses(tmp_path: Path) -> None:
    """An encoder in Python gives up at a few hundred, msgspec at a thousand."""
    for lists in (31, 32, 300):
        text = '{"a": ' + "[" * lists + "]" * lists + "}"
        if lists == 31:
            assert parse_json(text, dict[str, Any])
            continue
        with pytest.raises(Unreadable, match="nested too deeply"):
            parse_json(text, dict[str, Any])


def test_a_text_without_a_file_is_judged_alike() -> None:
    assert parse_json("[1, 2]", list[int]) == [1, 2]
    with pytest.raises(Unreadable, match=r"Expected `int`, got `str`"):
        parse_json('["a"]', list[int])
    with pytest.raises(Unreadable, match=r"Expected `int`, got `str`"):
        fit({"x": "a"}, Point)


def test_the_constants_of_python_s_writer_are_null_where_they_are_looked_for() -> None:
    text = '{"a": -Infinity, "b": [NaN, 1], "c": "NaN, as a word"}'
    with pytest.raises(Unreadable, match="malformed"):
        parse_json(text, dict[str, Any])
    expected = {"a": None, "b": [None, 1], "c": "NaN, as a word"}
    assert parse_json(text, dict[str, Any], constants=True) == expected
    for broken in ('{"a": NaN', f'{{"a": NaN, "b": {"9" * 5000}}}', '{"a": NaN, "b": 1e999x}'):
        with pytest.raises(Unreadable):
            parse_json(broken, dict[str, Any], constants=True)


def test_toml_that_is_none_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("a = 1\nb = ?\n")
    with pytest.raises(Unreadable, match="line 2"):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000 + "]" * 5000,
        "a = " + "[" * 100 + "]" * 100,
        "a = " + "{b = " * 5000 + "1" + "}" * 5000,
        ".".join(["a"] * 5000) + " = 1",
        f"[{'.'.join(['a'] * 5000)}]",
    ],
)
def test_toml_nested_beyond_use_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "deep.toml").write_text(text)
    with pytest.raises(Unreadable, match="nested too deeply"):
        read_toml(tmp_path / "deep.toml")


def test_toml_as_deep_as_any_settings_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[a.b.c]\nd = [[1], [{e = 2}]]\n")
    assert read_toml(tmp_path / "a.toml") == {"a": {"b": {"c": {"d": [[1], [{"e": 2}]]}}}}


def test_words_joined_by_dots_in_a_text_are_no_name(tmp_path: Path) -> None:
    words = ".".join(["w"] * 60)
    (tmp_path / "a.toml").write_text(f'prompt = "{words}"\nmore = ["{words}"]\n')
    assert read_toml(tmp_path / "a.toml") == {"prompt": words, "more": [words]}


def test_what_is_no_ordinary_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path, tmp_path / "absent"):
        with pytest.raises(Unreadable):
            read_bytes(path)


@pytest.mark.parametrize("most", [2**20, 2**40])
def test_reading_takes_the_memory_of_the_file_and_not_of_the_limit(
    tmp_path: Path, most: int
) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    assert read_bytes(tmp_path / "a", most) == b"x" * 1000
    assert size_of(tmp_path / "a") == 1000


def test_what_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(11))
    with pytest.raises(Unreadable, match="11 bytes; at most 10"):
        read_bytes(tmp_path / "a", most=10)


def test_a_dotted_name_beyond_all_depth_is_not_given_to_the_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which needs the square of its parts: days for a megabyte."""
    monkeypatch.setattr(tomllib, "loads", lambda text: pytest.fail("parsed"))
    path = tmp_path / "a.toml"
    for name in (".".join("a" * 40), "a . " * 40 + "a", '"a b".' * 40 + "a", "'a'.b." * 20 + "c"):
        for text in (f"{name} = 1", f"x = 1\n[{name}]\n", f"x = {{ {name} = 1 }}"):
            path.write_text(text)
            with pytest.raises(Unreadable, match="nested too deeply"):
                read_toml(path)
    path.write_text("x" * 2**20 + "=1")
    with pytest.raises(Unreadable, match="at most 1,048,576 are read"):
        read_toml(path)


def test_dots_that_are_no_names_are_read(tmp_path: Path) -> None:
    values = {"a": [0.5] * 100, "b": "/../" * 40, "c": ["a.b"] * 100, "d": "..." * 40}
    path = tmp_path / "a.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    assert read_toml(path) == values
