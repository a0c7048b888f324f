"""Imports inside the package go down only, are absolute, and heavy libraries have one door each.

The table is the picture of ARCHITECTURE.md at its smallest: what a unit may import besides itself.
A unit is a package or file under src/smidgen; the longest name that fits a module wins. Siblings of
one layer do not import each other unless it says so here.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "smidgen"

# what L1 has besides data
MODELS = ("errors", "sizes", "files", "core", "hosts", "models.dit", "diffusion")
L1 = (*MODELS, "models", "data")
L3 = (
    *("sampling", "evaluation", "explanation", "distillation", "training"),
    *("interop", "statistics", "hub", "library"),
)

ALLOWED: dict[str, tuple[str, ...]] = {
    # L0
    "errors": (),
    "sizes": ("errors",),
    "files": ("errors", "sizes"),
    "processes": ("errors",),
    "allocator": (),
    "progress": (),
    "cluster": ("errors",),
    "figures": (),
    "core": ("errors", "files"),
    # L1
    "diffusion": (),
    "models.dit": (),  # apart from the rest of models/, so that hosts may name its class
    "hosts": ("errors", "sizes", "files", "core", "models.dit"),
    "models": (*MODELS, "processes", "allocator"),
    "data": ("errors", "sizes", "files"),
    # L2
    "methods": L1,
    "fast": ("errors", "core", "models.dit"),
    # L3
    "sampling": (*MODELS, "models", "data", "fast"),
    "evaluation": (*L1, "methods", "sampling", "processes"),
    "explanation": (*MODELS, "models", "fast", "sampling", "figures"),
    "distillation": (*MODELS, "models", "fast", "sampling"),
    "training": (*L1, "methods", "fast", "sampling", "evaluation", "processes", "progress"),
    "interop": (*MODELS, "models", "methods"),
    "hub": (*MODELS, "models", "evaluation", "interop"),
    "library": (*L1, "sampling", "evaluation", "training"),
    "statistics": ("errors", "files", "evaluation"),
    "verification": (*L1, "methods", "sampling", "evaluation", "training", "processes"),
    # L4
    "api": (*L1, "methods", *L3, "verification", "processes", "progress", "figures"),
    "__init__": ("errors", "api"),
    # L5
    "study": (*L1, "methods", *L3, "api", "processes", "progress", "figures", "cluster"),
    "serving": (*MODELS, "models", "fast", "sampling", "library", "processes", "cluster"),
    # L6
    "cli": (
        *L1,
        "methods",
        *L3,
        "verification",
        "api",
        "study",
        "serving",
        "figures",
        "processes",
        "progress",
    ),
    "__main__": ("cli",),
}

ONE_DOOR = {
    "diffusers": "models/components.py",
    "transformers": "models/vision.py",
    "accelerate": "training/runtime.py",
    "datasets": "data/hub_images.py",
    "jinja2": "files/pages.py",
    "ray": "cluster.py",
    "uvicorn": "serving/run.py",
}


def unit_of(module: str) -> str | None:
    """The entry of ALLOWED that holds `module` (dotted, below the package), or None."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in ALLOWED:
            return ".".join(parts[:length])
    return None


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, inside functions too; relative ones keep dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = node.func.id if isinstance(node.func, ast.Name) else name
            if name in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def violations(package: Path) -> list[str]:
    """One line for each import under `package` that the tables forbid."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        unit = unit_of(module)
        if unit is None:
            found.append(f"{relative}: in no layer; add it to the table and to ARCHITECTURE.md")
            continue
        for line, name in imports_of(ast.parse(path.read_text(encoding="utf-8"))):
            reason = _reason(unit, relative.as_posix(), name)
            if reason:
                found.append(f"{relative}:{line}: {name}: {reason}")
    return found


def _reason(unit: str, path: str, name: str) -> str | None:
    if name.startswith("."):
        return "imports are absolute"
    top, _, rest = name.partition(".")
    if top in ONE_DOOR and path != ONE_DOOR[top]:
        return f"only {ONE_DOOR[top]} imports {top}"
    if top != PACKAGE.name:
        return None
    target = unit_of(rest or "__init__") or "__init__"  # `from smidgen import x` reads __init__
    if target == unit or target in ALLOWED[unit]:
        return None
    return f"{unit} may not import {target}"


def test_imports_go_down_only():
    assert violations(PACKAGE) == []


def test_the_tables_have_no_cycle_and_name_only_units():
    reached: set[str] = set()
    while len(reached) < len(ALLOWED):
        ready = {unit for unit, below in ALLOWED.items() if set(below) <= reached} - reached
        assert ready, f"these import each other: {set(ALLOWED) - reached}"
        reached |= ready


PLANTED = [
    ("core/sites.py", "import smidgen.hosts.dit", "core may not import hosts"),
    (
        "core/sites.py",
        "def f():\n    from smidgen.models import dit",
        "core may not import models.dit",
    ),
    ("hosts/dit.py", "from smidgen.models.base import Base", "hosts may not import models"),
    (
        "diffusion/sampler.py",
        "from smidgen.errors import UsageError",
        "diffusion may not import errors",
    ),
    (
        "methods/lora.py",
        "from smidgen.training.loop import train",
        "methods may not import training",
    ),
    ("evaluation/run.py", "import smidgen.training", "evaluation may not import training"),
    ("data/folder.py", "from smidgen import sample", "data may not import __init__"),
    ("data/folder.py", "from importlib import import_module\nimport_module('smidgen.api')", "api"),
    ("core/fold.py", "from .sites import Site", "imports are absolute"),
    ("models/dit_weights.py", "from diffusers import AutoencoderKL", "only models/components.py"),
    ("api.py", "def f():\n    import transformers.models", "only models/vision.py"),
    ("training/loop.py", "import accelerate", "only training/runtime.py"),
    ("novel/thing.py", "import torch", "in no layer"),
]


@pytest.mark.parametrize(("path", "source", "reason"), PLANTED)
def test_a_planted_violation_is_found(tmp_path, path, source, reason):
    for clean in ("core/edits.py", "methods/full.py"):
        _write(tmp_path / clean, "import torch\nfrom smidgen.core.sites import Site\n")
    assert violations(tmp_path) == []
    _write(tmp_path / path, source)
    (found,) = violations(tmp_path)
    assert found.startswith(path)
    assert reason in found


def test_what_the_picture_allows_passes(tmp_path):
    _write(
        tmp_path / "models/components.py", "import diffusers\nfrom smidgen.hosts.host import Host"
    )
    _write(tmp_path / "training/runtime.py", "from accelerate import Accelerator")
    _write(tmp_path / "hosts/dit.py", "def f():\n    from smidgen.models.dit import DiT")
    _write(
        tmp_path / "cli/main.py", "from smidgen import api\nfrom smidgen.files.settings import read"
    )
    assert violations(tmp_path) == []


def _write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
