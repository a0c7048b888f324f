"""tests/README.md keeps its word: every case that it lists has tests, and they are there."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
TEXT = (TESTS / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([AF]\d+) \|.*?\| (`.*`) \|$", TEXT, re.MULTILINE)


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_case_names_tests_that_are_there():
    numbers = [f"F{number}" for number in range(1, 20)] + [f"A{number}" for number in range(1, 17)]
    assert [case for case, _ in ROWS] == numbers
    for case, named in ROWS:
        for path, name in re.findall(r"`(\S+)::(\w+)`", named):
            assert name in functions(TESTS / path), f"{case}: {path}::{name}"


def test_cases_that_comments_name_are_listed():
    named = {
        case
        for path in TESTS.rglob("*.py")
        for case in re.findall(r"case ([AF]\d+)", path.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= {case for case, _ in ROWS}
