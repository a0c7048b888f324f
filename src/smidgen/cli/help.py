"""What `smidgen VERB --help` shows: a group for each dataclass with its docstring, and for each
setting its flag, what it takes, the text below its field in the source, and its default.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

from smidgen.files.settings import Setting, alternatives, describe, fields_of, settings_of
from smidgen.files.toml import NONE, toml
from smidgen.sizes import ImageSize

MOST_COLUMNS = 120
TEXT_COLUMN = 26
MOST_CHOICES = 40  # characters: a longer list of choices stands in the text
WORDS = {int: "INT", float: "FLOAT", Path: "PATH", ImageSize: "INT|WxH", type(None): NONE}


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _split_lines(self, text: str, width: int) -> list[str]:
        return _wrap(text, width)


def help_text(
    verb: str,
    description: str,
    groups: Mapping[str, type],
    values: Mapping[str, Any],
    positional: str | None,
) -> str:
    """The help of a verb, as wide as the terminal. `values` of a recipe stand in for defaults;
    `positional` names the setting that has no flag.
    """
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS) - 2
    bare = f"{positional.upper()} " if positional else ""
    parser = argparse.ArgumentParser(
        usage=f"smidgen {verb} [RECIPE.toml] {bare}[--flag value ...]",
        description=_paragraphs(description, width),
        formatter_class=functools.partial(_Formatter, width=width, max_help_position=TEXT_COLUMN),
        add_help=False,
    )
    for title, config, prefix in _parts(groups):
        group = parser.add_argument_group(title, _paragraphs(_doc(config), width - 2))
        texts = _texts(config)
        for name, setting in settings_of(config, prefix=prefix).items():
            field = name.removeprefix(prefix)
            if "." not in field:  # else it belongs to a part of its own
                default = values.get(name, setting.default)
                _add(group, setting, texts.get(field, ""), default, name == positional)
    group.add_argument("-h", "--help", action="help", help="Show this and stop.")
    return parser.format_help()


def _parts(groups: Mapping[str, type], prefix: str = "") -> Iterator[tuple[str, type, str]]:
    """The configs and those within them: the name, the class, what stands before its flags."""
    for name, config in groups.items():
        yield name, config, prefix
        for field, annotation in fields_of(config):
            if dataclasses.is_dataclass(annotation):
                inner = {field.name: cast(type, annotation)}
                yield from _parts(inner, f"{prefix}{field.name}.")


def _doc(config: type) -> str:
    """Its docstring up to what it raises; none if a dataclass has made it up."""
    text = inspect.getdoc(config) or ""
    return "" if text.startswith(f"{config.__name__}(") else text.partition("Raises:")[0].rstrip()


def _texts(config: type) -> dict[str, str]:
    """The string below each field in the source, as far as there is a source."""
    texts: dict[str, str] = {}
    for one in reversed(config.__mro__):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        except (OSError, TypeError):  # made up by make_dataclass, or built in
            continue
        for pair in itertools.pairwise(cast(ast.ClassDef, tree).body):
            match pair:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def _add(group: Any, setting: Setting, text: str, default: Any, is_positional: bool) -> None:
    """List a setting with its choices, if the flag does not show them, and its default."""
    takes, choices = _takes(setting)
    notes = [choices, "" if setting.switch else _default(default)]
    if noted := "; ".join(filter(None, notes)):
        text = f"{text} ({noted})".strip()
    names, more = setting.flags, {"metavar": takes, "nargs": "*" if setting.is_list else None}
    if is_positional:
        names, more["metavar"] = (setting.name,), setting.name.upper()
    elif setting.is_yes_or_no:
        more = {"action": "store_true"}
    group.add_argument(*names, help=text.replace("%", "%%"), **more)


def _takes(setting: Setting) -> tuple[str, str]:
    """What stands behind a flag, such as `INT|none` or `cpu|cuda`; where the choices are many its
    name does, and the choices come second.
    """
    kind = get_args(setting.annotation)[0] if setting.is_list else setting.annotation
    words: list[str] = []
    for one in alternatives(kind):
        words += get_args(one) if get_origin(one) is Literal else [WORDS.get(one, "TEXT")]
    takes = "|".join(dict.fromkeys(words))
    if len(takes) <= MOST_CHOICES:
        return takes, ""
    return setting.name.rpartition(".")[2].upper(), describe(kind)


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "required"
    if isinstance(value, tuple):
        return f"default: {' '.join(map(str, value)) or 'an empty list'}"
    plain = isinstance(value, str | Path) and value
    return f"default: {NONE if value is None else value if plain else toml(value)}"


def _paragraphs(text: str, width: int) -> str:
    """The paragraphs of a text in lines of `width`; one with indented lines stays as it is."""
    return "\n\n".join(
        part if "\n " in part else "\n".join(_wrap(part, width)) for part in text.split("\n\n")
    )


def _wrap(text: str, width: int) -> list[str]:
    """Lines that break between words, never within the name of a flag."""
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
