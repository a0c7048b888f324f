"""Settings: the fields of frozen dataclasses, and the one way in which a flag's text, a TOML value
and a Python value become theirs, with one wording for what a value must be.

A recipe's keys are the names of the flags (with underscores or hyphens); a missing key means the
default. The fields of a dataclass within a dataclass have dotted names: `lora.rank = 8`, or `rank`
in a table `[lora]`. TOML has no null: "none" stands for it. No command line here, no heavy import.
"""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from smidgen.errors import UsageError, closest
from smidgen.files.checks import check_choice
from smidgen.files.reading import Unreadable, read_toml
from smidgen.files.toml import NONE, toml
from smidgen.sizes import EXPECTED, ImageSize

C = TypeVar("C")

UNIONS = (Union, types.UnionType)
LISTS = (tuple, Sequence)
MOST_SHOWN = 160  # characters of a wrong value
MOST_INTEGER = 2**63  # TOML's integers have 64 bits, and so have those of torch

# metadata of a field that is no setting of its own; of a flag that only switches something on; of
# one whose values add up where it is repeated
NO_FLAG: Mapping[str, bool] = {"flag": False}
SWITCH: Mapping[str, bool] = {"switch": True}
ADDS: Mapping[str, bool] = {"adds": True}


class Text(str):
    """What a flag was given: it stands for a value of the type of its setting."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a config dataclass; `default` is dataclasses.MISSING if it must be given, a
    `switch` is a flag without an opposite, and of one that `adds` all that is given counts, else
    the last.
    """

    name: str
    annotation: Any
    default: Any
    switch: bool = False
    adds: bool = False

    @property
    def flag(self) -> str:
        """The command line's spelling, e.g. --batch-size."""
        return "--" + self.name.replace("_", "-")

    @property
    def flags(self) -> tuple[str, ...]:
        """All its spellings; the second one switches it off, e.g. --no-flip or --lora.no-flip."""
        group, dot, leaf = self.flag[2:].rpartition(".")
        pair = self.is_yes_or_no and not self.switch
        return (self.flag, f"--{group}{dot}no-{leaf}") if pair else (self.flag,)

    @property
    def is_yes_or_no(self) -> bool:
        """Whether its flags have no value."""
        return bool in alternatives(self.annotation)

    @property
    def is_list(self) -> bool:
        """Whether it has any number of values."""
        return get_origin(self.annotation) in LISTS


def settings_of(*configs: type, prefix: str = "") -> dict[str, Setting]:
    """All fields of config dataclasses by name, in order; those of a field that is a dataclass
    itself under `field.name`. `prefix` stands before all names.

    Raises: ValueError if two of them share a field name, a mistake in the program.
    """
    found: dict[str, Setting] = {}
    for config in configs:
        for field, annotation in fields_of(config):
            name = prefix + field.name
            if name in found:
                raise ValueError(f"two configs have a field {name}")
            if dataclasses.is_dataclass(annotation):
                found |= settings_of(cast(type, annotation), prefix=f"{name}.")
                continue
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            known = {key: field.metadata.get(key, False) for key in ("switch", "adds")}
            found[name] = Setting(name=name, annotation=annotation, default=default, **known)
    return found


@cache  # a study asks for each of its runs
def fields_of(config: type) -> tuple[tuple[dataclasses.Field[Any], Any], ...]:
    """The fields of a config dataclass that are settings or hold such, each with its type."""
    hints = typing.get_type_hints(config)
    fields = dataclasses.fields(config)
    return tuple((field, hints[field.name]) for field in fields if field.metadata.get("flag", True))


def make(config: type[C], values: Mapping[str, Any], source: str = "", kind: str = "setting") -> C:
    """The config with these Python values, the others at their defaults. Messages name `source`,
    and call what has a value a `kind`.

    Raises: UsageError for an unknown name, with the closest one, or a value of the wrong type; and
        as the config itself.
    """
    return fill(config, check_values(values, config, source=source, kind=kind))


def fill(config: type[C], values: Mapping[str, Any], prefix: str = "") -> C:
    """The config with checked values by the names of `settings_of`, the others at their defaults;
    what belongs to other configs is left aside.
    """
    given: dict[str, Any] = {}
    for field, annotation in fields_of(config):
        name = prefix + field.name
        if dataclasses.is_dataclass(annotation):
            given[field.name] = fill(cast(type, annotation), values, f"{name}.")
        elif name in values:
            given[field.name] = values[name]
    return config(**given)


def read_recipe(path: Path) -> dict[str, Any]:
    """The values of a recipe by name, as TOML has them; `check_values` looks at them.

    Raises: UsageError if the file cannot be read or is no TOML, with the line.
    """
    try:
        return {key.replace("-", "_"): value for key, value in read_toml(path).items()}
    except Unreadable as error:
        if not path.exists():
            raise UsageError(f"no such recipe: {path}") from error
        raise UsageError(f"cannot read the recipe {path}: {error.reason}") from error


def check_values(
    values: Mapping[str, Any], *configs: type, source: str, kind: str = "key"
) -> dict[str, Any]:
    """The values in the types of their settings in the configs, by the names of `settings_of`.

    Raises: UsageError for an unknown name or a value of the wrong type, in the words of `make`.
    """
    where, settings = f"{source}: " if source else "", settings_of(*configs)
    values = _dotted(values, configs, where)
    for name in values:
        if name not in settings:
            raise UsageError(f"{where}unknown {kind} {toml(name)}{closest(name, settings)}")
    return {
        name: convert(value, settings[name].annotation, where + name)
        for name, value in values.items()
    }


def _dotted(values: Mapping[str, Any], configs: Sequence[type], where: str) -> dict[str, Any]:
    """What is given for a field that is a dataclass itself, such as a table, as `field.name`."""
    hints = {field.name: hint for config in configs for field, hint in fields_of(config)}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if not dataclasses.is_dataclass(hints.get(name)):
            flat[name] = value
            continue
        inner = flatten(value) if dataclasses.is_dataclass(value) else value
        if not isinstance(inner, Mapping):
            raise UsageError(f"{where}{name} is {_shown(value)}; expected its options by name")
        flat |= {f"{name}.{key.replace('-', '_')}": one for key, one in inner.items()}
    return flat


def convert(value: Any, annotation: Any, name: str) -> Any:
    """A flag's Text, a TOML or a Python value as the type of its field: a list becomes a tuple,
    text a path, an integer a number where that is the type.

    Raises: UsageError saying what `name` is and what was expected.
    """
    try:
        return _convert(value, annotation)
    except (ValueError, OverflowError):
        expected = describe(annotation)
        raise UsageError(f"{name} is {_shown(value)}; expected {expected}") from None


def _convert(value: Any, annotation: Any) -> Any:
    """Raises: ValueError, OverflowError."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in UNIONS:
        for one in sorted(parts, key=lambda part: part is not type(None)):  # "none" is no text here
            with contextlib.suppress(ValueError, OverflowError):
                return _convert(value, one)
    elif origin is Literal:
        if isinstance(value, str) and value in parts:
            return str(value)
    elif origin in LISTS:
        if isinstance(value, list | tuple):
            return tuple(_convert(item, parts[0]) for item in value)
    elif annotation is type(None):
        if value is None or (isinstance(value, str) and value in (NONE, "None")):
            return None
    elif annotation in (int, float):
        number = numbers.Integral if annotation is int else numbers.Real  # NumPy's are such, too
        if isinstance(value, number | Text) and not isinstance(value, bool):
            converted = annotation(cast(Any, value))
            if annotation is float or abs(converted) < MOST_INTEGER:
                return converted
    elif annotation is ImageSize:
        if isinstance(value, ImageSize | int | str):
            with contextlib.suppress(UsageError):
                return ImageSize.of(value)
    elif annotation is Path:
        if isinstance(value, str | Path) and "\0" not in str(value):
            return Path(value)
    elif annotation is Any or isinstance(value, annotation):
        return str(value) if isinstance(value, Text) else value
    raise ValueError


def check_choices(config: Any) -> None:
    """Raises: UsageError for a field that is one of some words by its type, and is another."""
    for field, annotation in fields_of(type(config)):
        parts = [part for part in alternatives(annotation) if get_origin(part) is Literal]
        if parts:
            words = [word for part in parts for word in get_args(part)]
            check_choice(field.name, getattr(config, field.name), words)


def _shown(value: Any) -> str:
    text = "a table" if isinstance(value, Mapping) else toml(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types that a union stands for; any other annotation alone."""
    return get_args(annotation) if get_origin(annotation) in UNIONS else (annotation,)


def describe(annotation: Any) -> str:
    """What a value of this type looks like to a person, e.g. `a number or "none"`."""
    parts = alternatives(annotation)
    choices = [str(one) for part in parts if get_origin(part) is Literal for one in get_args(part)]
    choices += [NONE] if type(None) in parts else []
    words = [
        _word(one) for one in parts if get_origin(one) is not Literal and one is not type(None)
    ]
    if len(choices) == 1:
        words.append(f'"{choices[0]}"')
    elif choices:
        words.append(f"one of: {', '.join(choices)}")
    return " or ".join(words)


def _word(kind: Any) -> str:
    if get_origin(kind) in LISTS:
        return f"a list, each {describe(get_args(kind)[0])}"
    words = {bool: "true or false", int: "an integer", float: "a number", Path: "a path"}
    words[ImageSize] = EXPECTED
    return words.get(kind, "text")


def flatten(*configs: Any) -> dict[str, Any]:
    """The values of config instances by the names of `settings_of`, in order, as recipes and JSON
    have them.
    """
    values: dict[str, Any] = {}
    for config in configs:
        for field, _ in fields_of(type(config)):
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                values |= {f"{field.name}.{name}": one for name, one in flatten(value).items()}
            else:
                values[field.name] = value.plain if isinstance(value, ImageSize) else value
    return values


def recipe_text(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> str:
    """The TOML of all values; reading it back gives the same ones. A default None is left out."""
    lines = [
        f"{name} = {toml(value)}"
        for name, value in values.items()
        if not (value is None and settings[name].default is None)
    ]
    return "\n".join(lines) + "\n"
