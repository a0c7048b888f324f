"""From a verb's arguments and recipe to its dataclasses.

The recipe's values become the defaults that flags override. A recipe is the first argument and ends
in .toml. How text and TOML become values is in files/settings.py, the help in help.py, what a verb
does with its dataclasses in its own file.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.help import help_text
from smidgen.errors import UsageError, closest
from smidgen.files.settings import (
    Setting,
    Text,
    check_values,
    convert,
    describe,
    fill,
    read_recipe,
    settings_of,
)
from smidgen.files.toml import toml

MARK = "="  # before every value, so that argparse takes none for a flag: --lr -inf, --prompt=--x


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

    def peek(self, name: str, default: Any = None) -> Any:
        """The text of a flag, else the recipe's value, before anything is parsed."""
        found = self.values.get(name, default)
        for token, following in itertools.pairwise([*self.arguments, default]):
            flag, equals, value = token.partition("=")
            if flag.replace("_", "-") == "--" + name.replace("_", "-"):
                found = value if equals else following
        return found


def read_request(verb: str, argv: Sequence[str], *, positional: str | None = None) -> Request:
    """Take the recipe from the front of the arguments. Raises: UsageError if it cannot be read."""
    arguments = list(argv)
    recipe, values = None, {}
    if arguments and arguments[0].endswith(".toml"):
        recipe = Path(arguments.pop(0))
        values = read_recipe(recipe)
    return Request(
        verb=verb, arguments=arguments, recipe=recipe, values=values, positional=positional
    )


def parse(
    request: Request, groups: Mapping[str, type], *, switches: type, description: str
) -> dict[str, Any]:
    """An instance of each group and, under "switches", of `switches`, whose fields no recipe sets.

    Prints the help and exits if it is asked for.

    Raises: UsageError in one line for whatever the flags or the recipe have wrong.
    """
    everything = {**groups, "switches": switches}
    settings = settings_of(*everything.values())
    values = check_values(request.values, *groups.values(), source=str(request.recipe))
    if {"-h", "--help"} & set(request.arguments):
        print(help_text(request.verb, description, everything, values, request.positional), end="")
        raise SystemExit(0)
    try:
        values |= _read_flags(request, settings)
    except UsageError as error:
        raise UsageError(f"{error} (smidgen {request.verb} --help)") from None
    missing = [
        one.name if one.name == request.positional else one.flag
        for one in settings.values()
        if one.default is dataclasses.MISSING and one.name not in values
    ]
    if missing:
        raise UsageError(f"missing {', '.join(missing)} (smidgen {request.verb} --help)")
    return {name: fill(group, values) for name, group in everything.items()}


def _read_flags(request: Request, settings: Mapping[str, Setting]) -> dict[str, Any]:
    """The values of the flags that are given, and of the setting without one, by their names."""
    flagged = [one for one in settings.values() if one.name != request.positional]
    flags = {flag: one for one in flagged for flag in one.flags}
    try:
        found, bare = _parser(flags).parse_known_args(list(_marked(request.arguments, flags)))
    except argparse.ArgumentError as error:  # of a flag that should have one value
        expected = describe(flags[str(error.argument_name)].annotation)
        raise UsageError(f"{error.argument_name} lacks its value; expected {expected}") from None
    given, bare = vars(found), [_text(token) for token in bare]
    if request.positional and bare:
        takes_all = settings[request.positional].is_list
        given[request.positional], bare = (bare, []) if takes_all else (bare[0], bare[1:])
    if bare:
        raise UsageError(
            f"unexpected {toml(bare[0])}; a recipe comes first and ends in .toml, a value follows "
            "its flag"
        )
    return {
        name: convert(value, settings[name].annotation, settings[name].flag)
        for name, value in given.items()
    }


def _parser(flags: Mapping[str, Setting]) -> argparse.ArgumentParser:
    """A parser that collects what is given, without defaults, and leaves text as it is."""
    parser = argparse.ArgumentParser(
        argument_default=argparse.SUPPRESS, add_help=False, allow_abbrev=False, exit_on_error=False
    )
    for flag, one in flags.items():
        kind: dict[str, Any] = {"type": _text}
        if one.is_list:
            kind |= {"nargs": "*", "action": "extend" if one.adds else "store"}
        if one.is_yes_or_no:
            kind = {"action": "store_const", "const": flag == one.flag}
        parser.add_argument(flag, dest=one.name, **kind)
    return parser


def _marked(arguments: Sequence[str], flags: Iterable[str]) -> Iterator[str]:
    """The flags as they are listed, and every value behind MARK, a token each."""
    for token in arguments:
        if not token.startswith("--"):
            yield MARK + token
            continue
        flag, equals, value = token.partition("=")
        flag = flag.replace("_", "-")
        if flag not in flags:
            raise UsageError(f"unknown flag {toml(flag)}{closest(flag, sorted(flags))}")
        yield flag
        if equals:
            yield MARK + value


def _text(marked: str) -> Text:
    return Text(marked.removeprefix(MARK))
