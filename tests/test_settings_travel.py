"""Settings travel as one object: below api/, no function takes SamplingConfig or TrainingConfig
apart into parameters of its own.
"""

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from smidgen.sampling.config import SamplingConfig
from smidgen.training.config import TrainingConfig

PACKAGE = Path(__file__).parents[1] / "src" / "smidgen"
ENOUGH = 3  # fields of one object among the parameters of one function


def takes_apart(config: type, files: list[Path]) -> Iterator[str]:
    """The functions in `files` with at least ENOUGH fields of `config` among their parameters."""
    names = {field.name for field in fields(config)}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                if len(names & {parameter.arg for parameter in every}) >= ENOUGH:
                    yield f"{file.name}: {getattr(node, 'name', 'lambda')}"


@pytest.mark.parametrize("config", [SamplingConfig, TrainingConfig])
def test_below_the_door_no_function_takes_three_fields_of_a_settings_object(config):
    below = [file for file in PACKAGE.rglob("*.py") if "api" not in file.relative_to(PACKAGE).parts]
    assert list(takes_apart(config, below)) == []


def test_a_function_that_takes_three_is_found(tmp_path):
    file = tmp_path / "smuggled.py"
    file.write_text("def draw(base, steps, *, seed, guidance): ...\ndef two(steps, seed): ...\n")
    assert list(takes_apart(SamplingConfig, [file])) == ["smuggled.py: draw"]
