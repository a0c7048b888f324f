"""Recipes: flat TOML files <-> frozen dataclasses, with one wording for what a value must be.

A recipe's keys are the names of the flags (with underscores or hyphens); a missing key means the
default. The fields of a dataclass within a dataclass have dotted names: `lora.rank = 8`, or `rank`
in a table `[lora]`. TOML has no null: "none" stands for it. No command line here, no heavy import.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from smidgen.errors import UsageError, closest
from smidgen.files.toml import NONE, toml

C = typing.TypeVar("C")

NO_FLAG: Mapping[str, bool] = {"flag": False}  # metadata of a field that is no setting of its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a config dataclass; `default` is dataclasses.MISSING if it must be given."""

    name: str
    annotation: Any
    default: Any

    @property
    def flag(self) -> str:
        """The command line's spelling, e.g. --batch-size."""
        return "--" + self.name.replace("_", "-")

    @property
    def no_flag(self) -> str:
        """The spelling that switches a flag off, e.g. --no-flip or --lora.no-flip."""
        group, dot, leaf = self.flag[2:].rpartition(".")
        return f"--{group}{dot}no-{leaf}"

    @property
    def optional(self) -> bool:
        """Whether None is a value."""
        return type(None) in get_args(self.annotation)


def settings_of(*configs: type) -> dict[str, Setting]:
    """All fields of config dataclasses by name, in order; those of a field that is a dataclass
    itself under `field.name`.

    Raises: ValueError if two of them share a field name, a mistake in the program.
    """
    found: dict[str, Setting] = {}
    for config in configs:
        for setting in _own_settings(config):
            if setting.name in found:
                raise ValueError(f"two configs have a field {setting.name}")
            found[setting.name] = setting
    return found


def _own_settings(config: type) -> Iterator[Setting]:
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if not field.metadata.get("flag", True):
            continue
        annotation, default = hints[field.name], field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if dataclasses.is_dataclass(annotation):
            for inner in _own_settings(typing.cast(type, annotation)):
                yield dataclasses.replace(inner, name=f"{field.name}.{inner.name}")
        else:
            yield Setting(name=field.name, annotation=annotation, default=default)


def read_recipe(path: Path, settings: Mapping[str, Setting] | None = None) -> dict[str, Any]:
    """The values of a recipe; with `settings`, its keys and the types of its values are checked.

    Raises: UsageError if the file cannot be read, is no TOML (with the line), has an unknown key
    (with the closest known one) or a value of the wrong type.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError as error:
        raise UsageError(f"no such recipe: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the recipe {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    values = {key.replace("-", "_"): value for key, value in values.items()}
    return values if settings is None else check_values(values, settings, str(path))


def check_values(
    values: Mapping[str, Any], settings: Mapping[str, Setting], source: str
) -> dict[str, Any]:
    """The values in the types of their settings.

    Raises: UsageError for an unknown name or a value of the wrong type, naming `source`.
    """
    values = _dotted(values, settings)
    for name in values:
        if name not in settings:
            raise UsageError(f'{source}: unknown key "{name}"{closest(name, settings)}')
    return {
        name: convert(value, settings[name].annotation, f"{source}: {name}")
        for name, value in values.items()
    }


def _dotted(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The keys of a table that the settings know within a recipe, as `table.key`."""
    tables = {name.partition(".")[0] for name in settings if "." in name}
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and name in tables:
            flat |= {f"{name}.{key.replace('-', '_')}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def make(config: type[C], values: Mapping[str, Any]) -> C:
    """The config with these Python values, the others at their defaults.

    Raises: UsageError for an unknown name, with the closest one, or a value of the wrong type; and
        as the config itself.
    """
    settings = settings_of(config)
    for name in values:
        if name not in settings:
            raise UsageError(f'unknown setting "{name}"{closest(name, settings)}')
    return config(**{n: convert(v, settings[n].annotation, n) for n, v in values.items()})


def convert(value: Any, annotation: Any, name: str) -> Any:
    """A TOML value as the Python type of its field (lists become tuples, strings paths).

    Raises: UsageError saying what `name` is and what was expected.
    """
    converted = _convert(value, annotation)
    if converted is _WRONG:
        raise UsageError(f"{name} is {toml(value)}; expected {describe(annotation)}")
    return converted


_WRONG = object()


def _convert(value: Any, annotation: Any) -> Any:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        if type(None) in get_args(annotation) and value in (None, NONE):
            return None
        results = [_convert(value, one) for one in _alternatives(get_args(annotation))]
        return next((result for result in results if result is not _WRONG), _WRONG)
    if origin is Literal:
        return value if value in get_args(annotation) else _WRONG
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return _WRONG
        items = tuple(_convert(item, get_args(annotation)[0]) for item in value)
        return _WRONG if any(item is _WRONG for item in items) else items
    if annotation is float and type(value) is int:
        return float(value)
    if annotation is Path and isinstance(value, str | Path):
        return Path(value)
    return value if type(value) is annotation else _WRONG


def _alternatives(parts: Iterable[Any]) -> list[Any]:
    return [part for part in parts if part is not type(None)]


def describe(annotation: Any) -> str:
    """What a value of this type looks like to a person, e.g. `a number or "none"`."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    parts = get_args(annotation) if is_union else (annotation,)
    choices = [str(one) for part in parts if get_origin(part) is Literal for one in get_args(part)]
    words = [_word(part) for part in _alternatives(parts) if get_origin(part) is not Literal]
    if type(None) in parts:
        choices.append(NONE)
    if len(choices) == 1:
        words.append(f'"{choices[0]}"')
    elif choices:
        words.append(f"one of: {', '.join(choices)}")
    return " or ".join(words)


def _word(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"a list, each {describe(get_args(kind)[0])}"
    words = {bool: "true or false", int: "an integer", float: "a number", Path: "a path"}
    return words.get(kind, "text")


def flatten(*configs: Any) -> dict[str, Any]:
    """The values of config instances by the names of `settings_of`, in order."""
    values: dict[str, Any] = {}
    for config in configs:
        for field in dataclasses.fields(config):
            if not field.metadata.get("flag", True):
                continue
            value = getattr(config, field.name)
            if dataclasses.is_dataclass(value):
                inner = flatten(value)
                values |= {f"{field.name}.{name}": inner[name] for name in inner}
            else:
                values[field.name] = value
    return values


def recipe_text(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> str:
    """The TOML of all values; reading it back gives the same ones. A default None is left out."""
    lines = [
        f"{name} = {toml(value)}"
        for name, value in values.items()
        if not (value is None and settings[name].default is None)
    ]
    return "\n".join(lines) + "\n"
