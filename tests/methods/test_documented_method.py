"""docs/add-a-method.md and CONTRIBUTING.md are true: their methods build, act, fold and refuse."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from smidgen.core.fold import fold
from smidgen.errors import SmidgenError, UsageError
from tests.hosts.documented import add_painter, painter_base
from tests.laws.tiny import (
    NEW_CLASSES,
    TINY_HOSTS,
    all_labels,
    randomise,
    tiny_base,
)

ROOT = Path(__file__).parents[2]


def _read(page, name, monkeypatch):
    """A module of all Python code of a page."""
    sources = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)  # where dataclasses look up annotations
    for source in sources:
        exec(compile(source, str(page), "exec"), vars(module))
    return module


@pytest.fixture
def late(monkeypatch):
    return _read(ROOT / "docs" / "add-a-method.md", "late", monkeypatch)


@pytest.fixture
def contributing(monkeypatch):
    return _read(ROOT / "CONTRIBUTING.md", "contributing", monkeypatch)


def test_the_documented_method_trains_the_last_blocks_and_folds(late):
    base = tiny_base("dit")
    delta = late.build(
        base, late.Config(num_blocks=1), NEW_CLASSES, torch.Generator().manual_seed(0)
    ).double()
    randomise(delta, 0.2, seed=1)
    parts = {"blocks.1.mlp.gain", "blocks.1.mlp.offset"}
    assert set(delta.edits) == parts | {"label_table"}
    inputs = TINY_HOSTS["dit"].inputs(all_labels(NEW_CLASSES))
    folded = TINY_HOSTS["dit"].make(len(NEW_CLASSES)).double()
    folded.load_state_dict(fold(delta, base.denoiser.state_dict(), base.host.folds))
    with torch.no_grad(), delta.attach(base.denoiser):
        torch.testing.assert_close(base.denoiser(*inputs), folded(*inputs), atol=1e-12, rtol=1e-12)


def test_the_documented_method_refuses_what_does_not_fit(late):
    with pytest.raises(UsageError, match="at least 1"):
        late.Config(num_blocks=0)
    with pytest.raises(UsageError, match="2 blocks"):
        late.build(tiny_base("dit"), late.Config(num_blocks=3), NEW_CLASSES, torch.Generator())


@pytest.fixture
def painter(tmp_path, monkeypatch):
    """A base of the host of docs/add-a-host.md, whose other tests are in tests/hosts."""
    return painter_base(add_painter(tmp_path, monkeypatch))


def test_the_method_of_contributing_trains_and_folds_on_the_documented_host(contributing, painter):
    config = contributing.Config(offset=True)
    delta = contributing.build(painter, config, (), torch.Generator()).double()
    assert set(delta.edits) == {"leave.gain", "leave.offset"}
    randomise(delta, 0.2, seed=1)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64)
    inputs = x, torch.tensor([1.0, 2.0, 3.0]).double(), torch.ones(3, 2, 32).double()
    plain = painter.denoiser(*inputs)
    with delta.attach(painter.denoiser):
        output = painter.denoiser(*inputs)
    assert not torch.allclose(output, plain)
    output.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in delta.parameters())
    folded = type(painter.denoiser)().double()
    folded.load_state_dict(fold(delta, painter.denoiser.state_dict(), painter.host.folds))
    torch.testing.assert_close(folded(*inputs), output, atol=1e-12, rtol=1e-12)


def test_the_method_of_contributing_works_on_other_hosts(contributing):
    base = tiny_base("dit")
    delta = contributing.build(base, contributing.Config(), NEW_CLASSES, torch.Generator())
    assert set(delta.edits) == {"final_layer.linear.gain", "label_table"}


def test_a_base_without_labels_takes_no_classes(contributing, painter):
    with pytest.raises(SmidgenError, match="painter base has no label table for 2 classes"):
        contributing.build(painter, contributing.Config(), ("ant", "bee"), torch.Generator())
