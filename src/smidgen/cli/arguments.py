"""From a verb's arguments and recipe to its dataclasses: tyro parses, errors become one line.

The recipe's values become the defaults that flags override. A recipe is the first argument and ends
in .toml. What a verb does with its dataclasses is in the verb's own file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from smidgen.errors import UsageError, closest
from smidgen.files.settings import (
    NONE,
    Setting,
    check_values,
    describe,
    read_recipe,
    settings_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """A command line cut up: the recipe's raw values, if there is one, and the other arguments.

    `positional` names the setting that has no flag, for the verbs that have one.
    """

    verb: str
    arguments: list[str]
    recipe: Path | None = None
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    positional: str | None = None

    @property
    def wants_help(self) -> bool:
        """Whether the user asks for help; then no other check should come first."""
        return "-h" in self.arguments or "--help" in self.arguments

    def peek(self, name: str, default: Any = None) -> Any:
        """The text of a flag, else the recipe's value, before anything is parsed or imported."""
        flags = [token.replace("_", "-") for token in self.arguments]
        spelling = "--" + name.replace("_", "-")
        for position in reversed(range(len(flags))):
            flag, equals, _ = self.arguments[position].partition("=")
            if flag.replace("_", "-") != spelling:
                continue
            if equals:
                return self.arguments[position].partition("=")[2]
            following = self.arguments[position + 1 : position + 2]
            return following[0] if following else default
        return self.values.get(name, default)


def read_request(verb: str, argv: Sequence[str], *, positional: str | None = None) -> Request:
    """Take the recipe from the front of the arguments.

    Raises: UsageError if the first argument is no recipe, or the recipe cannot be read.
    """
    arguments = list(argv)
    recipe, values = None, {}
    if arguments and arguments[0].endswith(".toml"):
        recipe = Path(arguments.pop(0))
        values = read_recipe(recipe)
    elif arguments and not arguments[0].startswith("-") and positional is None:
        raise UsageError(f'unexpected "{arguments[0]}"; a recipe comes first and ends in .toml')
    for before, token in itertools.pairwise(arguments):
        if token.endswith(".toml") and not before.startswith("--"):
            raise UsageError(f"the recipe comes first: smidgen {verb} {token} --flag value ...")
    return Request(
        verb=verb, arguments=arguments, recipe=recipe, values=values, positional=positional
    )


def parse(
    request: Request, groups: Mapping[str, type], *, switches: type, description: str
) -> dict[str, Any]:
    """An instance of each group and, under "switches", of `switches`, whose fields no recipe sets.

    Prints the help and exits if it is asked for.

    Raises: UsageError in one line for whatever tyro or the recipe's check refuses.
    """
    in_recipe = settings_of(*groups.values())
    settings = settings_of(*groups.values(), switches)
    defaults = check_values(request.values, in_recipe, str(request.recipe))
    _check_flags(request.arguments, settings)
    arguments = _spell_none(request.arguments, settings)
    everything = {**groups, "switches": switches}
    command = dataclasses.make_dataclass(
        "Command",
        [(name, _flags_of(group)) for name, group in everything.items()],
        frozen=True,
        kw_only=True,
    )
    default = command(
        **{name: _with_defaults(group, defaults) for name, group in everything.items()}
    )
    parsed = _run_tyro(
        command, default, dataclasses.replace(request, arguments=arguments), description, settings
    )
    return {name: getattr(parsed, name) for name in everything}


def _flags_of(group: type) -> Any:
    """The type that tyro takes: flags without the group's name, its docstring up to "Raises:"."""
    paragraphs = (inspect.getdoc(group) or "").partition("\n\nRaises:")[0].split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    if any(dataclasses.is_dataclass(hint) for hint in typing.get_type_hints(group).values()):
        # its groups keep their own names before their flags: --lora.rank
        return Annotated[group, tyro.conf.arg(name="", help=text)]
    return Annotated[tyro.conf.OmitArgPrefixes[group], tyro.conf.arg(help=text)]


def _with_defaults(group: type, values: Mapping[str, Any]) -> Any:
    """An instance of the group for tyro to take defaults from, without the group's own checks.

    They run when tyro makes the real one: what a flag overrides need not be right.
    """
    bare = object.__new__(group)
    hints = typing.get_type_hints(group)
    settings = settings_of(group)
    for field in dataclasses.fields(group):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            prefix = f"{field.name}."
            inner = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
            value = _with_defaults(typing.cast(type, hint), inner)
        else:
            default = settings[field.name].default
            missing = default is dataclasses.MISSING
            value = values.get(field.name, tyro.MISSING if missing else default)
        object.__setattr__(bare, field.name, value)
    return bare


def _check_flags(arguments: Sequence[str], settings: Mapping[str, Setting]) -> None:
    """Refuse unknown flags before tyro does, with the closest known one."""
    known = {setting.flag for setting in settings.values()}
    known |= {setting.no_flag for setting in settings.values() if setting.annotation is bool}
    for token in arguments:
        flag = token.partition("=")[0].replace("_", "-")
        if token.startswith("--") and flag not in known | {"--help"}:
            raise UsageError(f'unknown flag "{flag}"{closest(flag, sorted(known))}')


def _spell_none(arguments: Sequence[str], settings: Mapping[str, Setting]) -> list[str]:
    """tyro spells it None, recipes "none": both are taken where a setting may have no value."""
    optional = {setting.flag for setting in settings.values() if setting.optional}
    spelled = list(arguments)
    for position, token in enumerate(arguments):
        flag, equals, value = token.partition("=")
        if flag.replace("_", "-") not in optional:
            continue
        if equals and value == NONE:
            spelled[position] = f"{flag}=None"
        elif arguments[position + 1 : position + 2] == [NONE]:
            spelled[position + 1] = "None"
    return spelled


def _run_tyro(
    command: type,
    default: Any,
    request: Request,
    description: str,
    settings: Mapping[str, Setting],
) -> Any:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                command,
                prog=f"smidgen {request.verb}",
                description=description,
                args=request.arguments,
                default=default,
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        message = _in_one_line(complaint.getvalue(), request, settings)
        raise UsageError(f"{message} (smidgen {request.verb} --help)") from None


def _in_one_line(text: str, request: Request, settings: Mapping[str, Setting]) -> str:
    """tyro's boxed complaint in the words of the recipe's checks."""
    lines = [re.sub(r"[\u2500-\u257f|]|-{3,}", " ", line).strip() for line in text.splitlines()]
    words = " ".join(" ".join(lines).partition("For full helptext")[0].split())
    by_flag = {setting.flag: setting for setting in settings.values()}
    flags = re.findall(r"--[a-z0-9-]+(?:\.[a-z0-9-]+)*", words)
    named = [flag for flag in flags if flag in by_flag]
    if words.startswith("Required options"):
        bare = [request.positional] if {"PATH", "STR"} & set(lines) and request.positional else []
        return f"missing {', '.join(bare + list(dict.fromkeys(named)))}"
    if words.startswith("Unrecognized options"):
        return f'unexpected "{words.partition(": ")[2]}"; a value follows its flag'
    if named:
        return _bad_value(by_flag[named[0]], request.arguments)
    return words


def _bad_value(setting: Setting, arguments: Sequence[str]) -> str:
    """`--steps is "ten"; expected an integer`, or that the value is missing."""
    expected = describe(setting.annotation)
    for position, token in enumerate(arguments):
        flag, equals, value = token.partition("=")
        if flag.replace("_", "-") != setting.flag:
            continue
        given = [value] if equals else []
        for following in arguments[position + 1 :] if not equals else ():
            if following.startswith("--"):
                break
            given.append(following)
        if not given:
            return f"{setting.flag} lacks its value; expected {expected}"
        return f'{setting.flag} is "{" ".join(given)}"; expected {expected}'
    return f"{setting.flag} has a bad value; expected {expected}"
