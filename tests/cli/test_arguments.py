"""What a recipe gives, flags override; every form of a flag; mistakes in one line; the help."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Literal

import pytest

from smidgen.cli.arguments import parse, read_request
from smidgen.errors import UsageError
from smidgen.files.settings import ADDS, SWITCH


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What to run.

    Raises: UsageError for an odd number.
    """

    data: Path
    """Where the images are."""
    even: int = 2
    """A number that two divides
    without a remainder, 100% of the time."""
    lr: float | None = None
    names: tuple[str, ...] = ("a",)
    words: tuple[str, ...] = dataclasses.field(default=(), metadata=ADDS)
    flip: bool = True
    note: str | None = None
    kind: Literal["plain", "odd"] = "plain"

    def __post_init__(self) -> None:
        if self.even % 2:
            raise UsageError(f"even is {self.even}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    loud: bool = dataclasses.field(default=False, metadata=SWITCH)
    """Say it out loud."""


def parsed(*arguments: str):
    request = read_request("train", arguments)
    result = parse(request, {"run": Run}, switches=Switches, description="Run.")
    return result["run"], result["switches"]


@pytest.fixture
def recipe(tmp_path) -> str:
    path = tmp_path / "recipe.toml"
    path.write_text('data = "photos"\neven = 3\nlr = 0.1\nnames = ["x", "y"]\nflip = false\n')
    return str(path)


def test_flags_override_the_recipe_even_where_it_is_wrong(recipe):
    run, _ = parsed(recipe, "--even", "4", "--lr", "none", "--flip")
    assert run == Run(data=Path("photos"), even=4, lr=None, names=("x", "y"), flip=True)
    with pytest.raises(UsageError, match="even is 3"):
        parsed(recipe)


def test_hyphens_underscores_and_equals_signs_are_all_taken():
    run, switches = parsed("--data=x", "--names", "b", "c", "--no-flip", "--loud", "--lr=2e-3")
    assert run == Run(data=Path("x"), names=("b", "c"), flip=False, lr=2e-3)
    assert switches.loud
    assert parsed("--data", "x", "--no_flip")[0].flip is False


FORMS = {  # what is given after --data x, and what it sets
    "a number below zero": (["--even", "-4"], {"even": -4}),
    "infinity below zero": (["--lr", "-inf"], {"lr": float("-inf")}),
    "an exponent": (["--lr", "-1e-4"], {"lr": -1e-4}),
    "an integer for a number": (["--lr", "1"], {"lr": 1.0}),
    "none": (["--lr", "none"], {"lr": None}),
    "no text": (["--note", "none"], {"note": None}),
    "empty text": (["--note", ""], {"note": ""}),
    "empty text after =": (["--note="], {"note": ""}),
    "a hyphen": (["--note", "-x"], {"note": "-x"}),
    "a hyphen and a space": (["--note", "-a b"], {"note": "-a b"}),
    "a flag after =": (["--note=--even"], {"note": "--even"}),
    "= within": (["--note", "a=b"], {"note": "a=b"}),
    "= within after =": (["--note=a=b=c"], {"note": "a=b=c"}),
    "a list": (["--names", "b", "c"], {"names": ("b", "c")}),
    "a list after =": (["--names=b", "c"], {"names": ("b", "c")}),
    "commas are text": (["--names", "b,c"], {"names": ("b,c",)}),
    "a list with the name of a file": (["--names", "b", "c.toml"], {"names": ("b", "c.toml")}),
    "a list of nothing": (["--names"], {"names": ()}),
    "a list of nothing before a flag": (["--names", "--even", "4"], {"names": (), "even": 4}),
    "a hyphen in a list": (["--names", "-x", "b"], {"names": ("-x", "b")}),
    "the last one counts": (["--even", "8", "--even=4"], {"even": 4}),
    "the last list counts": (["--names", "b", "c", "--names", "d"], {"names": ("d",)}),
    "lists that add up": (["--words", "b", "c", "--words", "d"], {"words": ("b", "c", "d")}),
    "the last of a pair counts": (["--no-flip", "--flip"], {"flip": True}),
    "a choice": (["--kind", "odd"], {"kind": "odd"}),
}


@pytest.mark.parametrize(("arguments", "values"), FORMS.values(), ids=FORMS)
def test_every_form_of_a_value_is_taken(arguments, values):
    assert parsed("--data", "x", *arguments)[0] == Run(data=Path("x"), **values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """What to look at."""

    thing: str
    """The thing."""
    size: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Many:
    things: tuple[str, ...] = ()
    size: int = 1


def looked(positional, group, *arguments):
    request = read_request("inspect", arguments, positional=positional)
    return parse(request, {"look": group}, switches=Switches, description="Look.")["look"]


def test_a_setting_without_a_flag_may_stand_anywhere(tmp_path):
    for arguments in (("a", "--size", "2"), ("--size", "2", "a"), ("--size=2", "--loud", "a")):
        assert looked("thing", Look, *arguments) == Look(thing="a", size=2)
    assert looked("thing", Look, "-") == Look(thing="-")
    several = ("a", "--size", "2", "b", "--loud", "c")
    assert looked("things", Many, *several) == Many(things=("a", "b", "c"), size=2)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('thing = "from the recipe"\n')
    assert looked("thing", Look, str(recipe)).thing == "from the recipe"
    assert looked("thing", Look, str(recipe), "--size", "2", "given").thing == "given"


def test_a_setting_without_a_flag_is_named_when_it_is_missing_or_given_twice():
    with pytest.raises(UsageError, match=r"^missing thing \(smidgen inspect --help\)$"):
        looked("thing", Look, "--size", "2")
    with pytest.raises(UsageError, match='unexpected "b"'):
        looked("thing", Look, "a", "b")
    with pytest.raises(UsageError, match='unknown flag "--thing"'):
        looked("thing", Look, "--thing", "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing --data"),
        (["--data", "x", "--even", "two"], '--even is "two"; expected an integer'),
        (["--data", "x", "--lr=fast"], '--lr is "fast"; expected a number or "none"'),
        (["--data"], "--data lacks its value; expected a path"),
        (["--data", "x", "--evne", "2"], 'unknown flag "--evne"; did you mean "--even"'),
        (["--data", "x", "--flip", "yes"], 'unexpected "yes"'),
        (["x"], 'unexpected "x"'),
        (["--data", "x", "y"], 'unexpected "y"'),
        (["--data", "x", "-q"], 'unexpected "-q"'),
        (["--data", "--even", "2"], "--data lacks its value; expected a path"),
        (["--dat", "x"], 'unknown flag "--dat"; did you mean "--data"'),
        (["--data=x", "--even", "2.0"], '--even is "2.0"; expected an integer'),
        (["--data=x", "--even="], '--even is ""; expected an integer'),
        (["--data=x", "--flip=yes"], 'unexpected "yes"'),
        (["--data=x", "--no-loud"], 'unknown flag "--no-loud"'),
        (["--data=x", "--loud=1"], 'unexpected "1"'),
        (["--data=x", "--", "y"], 'unknown flag "--"'),
        (["--data=x", "--kind", "even"], '--kind is "even"; expected one of: plain, odd'),
        (["--data=x", "--run", "3"], 'unknown flag "--run"'),
        (["--data=x", "--even", "9" * 5000], "expected an integer"),
        (["--data=x", "--note", "a", "b\nc"], 'unexpected "b'),
    ],
)
def test_a_mistake_is_named_in_one_line(arguments, message):
    with pytest.raises(UsageError) as refusal:
        parsed(*arguments)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_switch_is_no_key_of_a_recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('data = "x"\nloud = true\n')
    with pytest.raises(UsageError, match='unknown key "loud"'):
        parsed(str(path))


def test_peek_reads_the_last_flag_then_the_recipe_then_the_default(recipe):
    request = read_request("train", [recipe, "--even", "6", "--even=8", "--some_name", "y"])
    assert request.peek("even") == "8"
    assert request.peek("some_name") == "y"
    assert request.peek("lr") == 0.1
    assert request.peek("other", "z") == "z"


def test_help_leaves_out_what_a_docstring_raises(capsys):
    with pytest.raises(SystemExit) as leaving:
        parsed("--help")
    assert leaving.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "Where the images are." in shown
    assert "Raises" not in shown


def help_of(capsys, *arguments, group=Run, positional=None):
    request = read_request("train", [*arguments, "--help"], positional=positional)
    with pytest.raises(SystemExit):
        parse(request, {"group": group}, switches=Switches, description="Do.\n\nexamples:\n  do it")
    return capsys.readouterr().out


def test_help_has_a_line_for_each_flag_with_what_it_takes_its_text_and_default(capsys):
    shown = help_of(capsys)
    assert "\nexamples:\n  do it\n\ngroup:\n  What to run.\n\n  --data" in shown
    for line in (
        "--data PATH Where the images are. (required)",
        "--even INT A number that two divides without a remainder, 100% of the time. (default: 2)",
        "--lr FLOAT|none (default: none)",
        "--names [TEXT ...] (default: a)",
        "--flip, --no-flip (default: true)",
        "--kind plain|odd (default: plain)",
        "--loud Say it out loud.",
    ):
        assert line in " ".join(shown.split())


def test_help_is_as_wide_as_the_terminal(capsys, monkeypatch):
    for columns in (60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert columns - 20 < max(map(len, help_of(capsys).splitlines())) <= columns


def test_help_shows_what_the_recipe_gives_as_the_default(capsys, recipe):
    shown = help_of(capsys, recipe)
    assert "(default: 0.1)" in shown
    assert "(default: x y)" in shown
    assert re.search(r"images are\. \(default:\s+photos\)", shown)


def test_help_names_what_has_no_flag_in_its_usage_and_its_group(capsys):
    shown = help_of(capsys, group=Look, positional="thing")
    assert shown.startswith("usage: smidgen train [RECIPE.toml] THING [--flag value ...]")
    assert re.search(r"^  THING +The thing\. \(required\)$", shown, re.MULTILINE)


def test_help_has_a_group_for_each_part_of_a_config_made_at_run_time(capsys):
    both = dataclasses.make_dataclass(
        "Both",
        [(name, Look, dataclasses.field(default_factory=lambda: Look(thing="a"))) for name in "pq"],
        namespace={"__doc__": "Two looks."},
    )
    shown = help_of(capsys, group=both)
    assert "Two looks." in shown
    for name in "pq":
        part = shown.partition(f"\n{name}:\n")[2].partition("\n\n")[0]
        assert part.strip() == "What to look at."
        assert re.search(rf"--{name}.thing TEXT +The thing\.", shown)


def test_a_long_list_of_choices_stands_in_the_text(capsys):
    choices = tuple(f"choice-number-{number}" for number in range(9))
    group = dataclasses.make_dataclass("Wide", [("pick", Literal[choices], choices[0])])
    shown = " ".join(help_of(capsys, group=group).split())
    assert f"--pick PICK (one of: {', '.join(choices)}; default: {choices[0]})" in shown
