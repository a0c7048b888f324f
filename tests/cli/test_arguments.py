"""What a recipe gives, flags override; tyro's complaints come out in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from smidgen.cli.arguments import parse, read_request
from smidgen.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What to run.

    Raises: UsageError for an odd number.
    """

    data: Path
    """Where the images are."""
    even: int = 2
    lr: float | None = None
    names: tuple[str, ...] = ("a",)
    flip: bool = True

    def __post_init__(self) -> None:
        if self.even % 2:
            raise UsageError(f"even is {self.even}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switches:
    loud: bool = False


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
