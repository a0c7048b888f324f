"""docs/add-a-method.md is true: its method builds, acts, folds and refuses as it says."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from smidgen.core.fold import fold
from smidgen.errors import UsageError
from tests.laws.tiny import NEW_CLASSES, TINY_HOSTS, all_labels, randomise, tiny_base

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture
def late(monkeypatch):
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("late")
    monkeypatch.setitem(sys.modules, "late", module)  # where dataclasses look up annotations
    exec(compile(source, str(PAGE), "exec"), vars(module))
    return module


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
