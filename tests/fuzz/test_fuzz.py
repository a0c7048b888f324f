"""Changed files of every kind, each read by a command: refused in one line, or harmless."""

import sys

import pytest

from tests.fuzz.kinds import KINDS
from tests.fuzz.worker import outcomes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux has them")

SEEDS = 12  # of each kind


@pytest.mark.slow
def test_changed_files_are_refused_in_one_line_or_harmless():
    """And every command takes the files as they are, or nothing would be tried."""
    whole = [(name, -1 - n) for name, kind in KINDS.items() for n in range(len(kind.commands))]
    changed = [(name, seed) for seed in range(SEEDS) for name in KINDS]
    assert len(changed) >= 300
    found = list(outcomes(whole + changed))
    wrong = [one for one in found if one.failure or (one.code and one.seed < 0)]
    listed = "".join(f"{one}\n" for one in wrong)
    assert not wrong, f'{listed}repeat one with: python -m tests.fuzz "KIND" SEED'
    refused = sum(bool(one.code) for one in found)
    assert 50 < refused < len(changed) - 50, "some of both"


WRONG = """
import os, sys
from pathlib import Path
from tests.fuzz import case
from tests.fuzz.worker import serve

def build():
    for name in ("train.toml", "notes.txt"):
        Path(name).write_text("steps = 3")

def forever():
    while True:
        pass

def say(text, code):
    os.write(1 + bool(code), text.encode())
    return code

answers = iter(({answers}))
case.MOST_SECONDS = {seconds}
serve(lambda arguments: next(answers)(), build)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (
            10,
            {
                "lambda: 1 / 0": "it ended with None",
                "lambda: say('smidgen: a\\nsmidgen: b\\n', 1)": "not one line",
                "lambda: say('smidgen: a\\n  b\\n', 1)": "not one line",
                "lambda: say('', 1)": "not one line",
                "lambda: say('smidgen: out of memory', 1)": "it asked for more than 1,073,741,824",
                "lambda: say('\\x1b[2J', 0)": "it shows '\\x1b'",
                "lambda: Path('notes.txt').write_text('other') * 0": "notes.txt is changed",
                "lambda: Path('new.txt').write_text('') + say('smidgen: a', 1)": "new.txt is new",
                "lambda: Path('tmp/new.txt').write_text('') * 0": "is left behind",
                "lambda: Path('out.json.partial').write_text('') * 0": "is left behind",
                "lambda: len(bytes(2**31)) * 0": "MemoryError",
                "lambda: len(bytes(2**29)) * 0": None,
                "lambda: os.kill(os.getpid(), 9)": "its process ended with -9",
            },
        ),
        (-1, {"lambda: 0": "it took"}),
        (0, {"forever": "its process ended with -24"}),
    ],
)
def test_what_must_not_be_is_seen(seconds, expected):
    """The harness itself, with a program that does one wrong thing after the other."""
    program = WRONG.format(answers=", ".join([*expected, ""]), seconds=seconds)
    found = outcomes([("recipe", seed) for seed in range(len(expected))], program)
    for outcome, (answer, failure) in zip(found, expected.items(), strict=True):
        assert (outcome.failure is None) == (failure is None), (answer, outcome)
        assert (failure or "") in (outcome.failure or ""), (answer, outcome)
