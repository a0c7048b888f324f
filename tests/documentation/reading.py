"""What can be told of a block without running it: flags, recipes, paths, modules and signatures."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import smidgen
from smidgen.cli.arguments import parse
from smidgen.cli.main import VERBS
from smidgen.distillation.config import DistillationConfig
from smidgen.evaluation.config import EvaluationConfig
from smidgen.explanation.config import ExplanationConfig
from smidgen.files.settings import settings_of
from smidgen.sampling.config import SamplingConfig
from smidgen.serving.schemas import Generation
from smidgen.statistics.config import AnovaConfig
from smidgen.study.design import read_design
from smidgen.training.config import RunConfig, TrainingConfig
from tests.documentation.pages import ROOT, SHELL, Block

TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
OURS = ("recipes/", "docs/", "bench/", "integrations/", "glyphs/")  # whose files must be there
# of functions that take any setting: whose they are
SETTINGS = {
    "anova": (AnovaConfig,),
    "evaluate": (EvaluationConfig,),
    "explain": (ExplanationConfig,),
    "sample": (SamplingConfig,),
    "sample_arrays": (SamplingConfig,),
    "sds": (DistillationConfig,),
    "train": (RunConfig, TrainingConfig),
}


class Parsed(Exception):
    """A command was parsed; its configs."""


def read(block: Block) -> None:
    """Raises: whatever is wrong with the block. AssertionError: nobody can tell."""
    if block.language in SHELL:
        for words in block.commands():
            read_command(words)
    elif block.language == "python":
        read_python(block.text)
    elif block.language == "json":
        json.loads(block.text)
    elif block.language == "toml":
        Path("recipe.toml").write_text(block.text, encoding="utf-8")
        read_design(Path("recipe.toml"))
    else:
        assert block.language == "text", f"what is {block.language}?"


def read_command(words: Sequence[str]) -> dict[str, Any]:
    """Of a command of smidgen its configs, as the command line makes them; else nothing."""
    for word in words:
        assert not word.startswith(OURS) or (ROOT / word).exists(), f"there is no {word}"
    match list(words):
        case [assignment, *rest] if re.match(r"\w+=", assignment):
            return read_command(rest)
        case ["smidgen", verb, *arguments]:
            return read_arguments(verb, arguments)
        case ["torchrun", "--nproc-per-node", _, "-m", "smidgen.cli", verb, *arguments]:
            return read_arguments(verb, arguments)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"there is no module {module}"
        case ["make", target]:
            assert target in TARGETS, f"the Makefile makes no {target}"
        case ["curl", *rest] if "-d" in rest:
            Generation.model_validate_json(rest[rest.index("-d") + 1])
        case ["mkdir" | "mv", *_]:
            pass
        case _:
            raise AssertionError(f"nobody can tell whether this is right: {words}")
    return {}


def read_arguments(verb: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The configs of a verb, by its own parsing, which must come to its end."""

    def stop(*args: Any, **given: Any) -> Any:
        raise Parsed(parse(*args, **given))

    assert verb in VERBS, f"no verb {verb}"
    module = importlib.import_module(f"smidgen.cli.{verb.replace('-', '_')}")
    train = importlib.import_module("smidgen.cli.train")  # parses for others
    with contextlib.ExitStack() as patches:
        for one in {module, train}:
            if hasattr(one, "parse"):
                patches.enter_context(mock.patch.object(one, "parse", stop))
        try:
            module.run(list(arguments))
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f"{verb} was not parsed")


def read_python(text: str) -> None:
    """Compile, import what it imports of smidgen, and bind the arguments of the calls of that."""
    tree = ast.parse(text)
    known: dict[str, Any] = {"smidgen": smidgen}
    for node in tree.body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(name.partition(".")[0] == "smidgen" for name in names):
            exec(compile(ast.Module([node], []), "page", "exec"), known)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = _found(call.func, known)
        if callable(function) and not any(isinstance(one, ast.Starred) for one in call.args):
            _bind(function, call)


def _found(node: ast.expr, known: dict[str, Any]) -> Any:
    """What a dotted name means, if it begins with one that is known."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _found(node.value, known)
        return None if owner is None else getattr(owner, node.attr)
    return None


def _bind(function: Callable[..., Any], call: ast.Call) -> None:
    named = [one.arg for one in call.keywords if one.arg is not None]
    signature = inspect.signature(function)
    signature.bind_partial(*call.args, **dict.fromkeys(named))
    free = set(named) - set(signature.parameters)
    configs = SETTINGS.get(function.__name__, ())
    known = {name for config in configs for name in settings_of(config)}
    assert free <= known, f"{function.__name__} has no {sorted(free - known)}"
