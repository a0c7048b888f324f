"""The options of the methods: frozen, each with its help, read without torch."""

import ast
import inspect
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, is_dataclass
from importlib import import_module

import pytest

from smidgen.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_options_are_frozen_dataclasses_with_defaults(method):
    config = METHODS[method].config()
    assert is_dataclass(config)
    with pytest.raises(FrozenInstanceError):
        config.anything = 1


@pytest.mark.parametrize("method", METHODS)
def test_the_file_of_a_method_builds_from_its_options(method):
    build = import_module(f"smidgen.methods.{method.replace('-', '_')}").build
    assert list(inspect.signature(build).parameters) == ["base", "config", "generator"]
    assert build.__annotations__["config"] == METHODS[method].config.__name__


@pytest.mark.parametrize("method", METHODS)
def test_every_option_has_its_own_help(method):
    config = METHODS[method].config
    (tree,) = ast.parse(inspect.getsource(config)).body
    helped = {
        field.target.id
        for field, text in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and str(text.value.value).strip()
    }
    assert helped == {field.name for field in fields(config)}
    assert inspect.getdoc(config)


def test_options_of_all_methods_together_are_read_without_torch():
    code = (
        "import sys, smidgen.methods as methods\n"
        "assert methods.resolve('difffit+lora').config().lora.rank == 8\n"
        "methods.configure('+'.join(methods.METHODS))\n"
        "assert methods.resolve('full').default_lr == 1e-4\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'safetensors'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
