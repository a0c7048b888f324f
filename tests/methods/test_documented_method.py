"""docs/add-a-method.md is true: its method is added as it says, builds, acts, folds and refuses."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from smidgen.cli.arguments import read_request
from smidgen.cli.train import parse_train
from smidgen.core.fold import fold
from smidgen.errors import SmidgenError, UsageError
from smidgen.methods import METHODS, Method, configs, configure
from smidgen.methods.build import build_delta
from tests.tiny.bases import NEW_CLASSES, law_base
from tests.tiny.hosts import TINY_HOSTS, all_labels
from tests.tiny.painter import add_painter, painter_base
from tests.tiny.weights import moved

ROOT = Path(__file__).parents[2]


def _python_of(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def late(monkeypatch):
    """The method of docs/add-a-method.md where that says: options, a line of the table, a file."""
    page = ROOT / "docs" / "add-a-method.md"
    options, file = _python_of(page)
    names = dict(vars(configs))
    exec(compile(options, str(page), "exec"), names)
    monkeypatch.setattr(configs, "LateConfig", names["LateConfig"], raising=False)
    module = ModuleType("smidgen.methods.late")
    exec(compile(file, str(page), "exec"), vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    (line,) = re.findall(r'```text\n    "late": (.*),\n```', page.read_text(encoding="utf-8"))
    row = eval(line, {"Method": Method, "LateConfig": names["LateConfig"]})
    monkeypatch.setitem(METHODS, "late", row)


def _build(name, base, classes=NEW_CLASSES, **options):
    generator = torch.Generator().manual_seed(0)
    return build_delta(name, base, configure(name, options), classes, generator).double()


@pytest.mark.usefixtures("late")
def test_the_documented_method_trains_the_last_blocks_and_folds():
    base = law_base("dit")
    delta = _build("late", base, num_blocks=1)
    moved(delta, 0.2, seed=1)
    parts = {"blocks.1.mlp.gain", "blocks.1.mlp.offset"}
    assert set(delta.edits) == parts | {"label_table"}
    inputs = TINY_HOSTS["dit"].inputs(all_labels(NEW_CLASSES))
    folded = TINY_HOSTS["dit"].make(len(NEW_CLASSES)).double()
    folded.load_state_dict(fold(delta, base.denoiser.state_dict(), base.host.folds))
    with torch.no_grad(), delta.attach(base.denoiser):
        torch.testing.assert_close(base.denoiser(*inputs), folded(*inputs), atol=1e-12, rtol=1e-12)


@pytest.mark.usefixtures("late")
def test_the_documented_method_is_trained_together_with_another():
    both = _build("late+lora", law_base("dit"), late={"num_blocks": 1})
    assert both.provenance.method == "late+lora"
    assert {"blocks.1.mlp.gain", "blocks.0.attn.qkv.lora_q"} < set(both.edits)


@pytest.mark.usefixtures("late")
def test_the_options_of_the_documented_method_are_flags():
    needed = ("--base", "glyphs", "--data", "photos", "--output", "run")
    for flags in (("late", "--num-blocks", "3"), ("late+lora", "--late.num-blocks", "3")):
        config = parse_train(read_request("train", ["--method", *flags, *needed]))["run"]
        options = config.method_config
        assert getattr(options, "late", options).num_blocks == 3


@pytest.mark.usefixtures("late")
def test_the_documented_method_refuses_what_does_not_fit():
    with pytest.raises(UsageError, match="at least 1"):
        configure("late", {"num_blocks": 0})
    with pytest.raises(UsageError, match="2 blocks"):
        _build("late", law_base("dit"), num_blocks=3)


@pytest.fixture
def painter(tmp_path, monkeypatch):
    """A base of the host of docs/add-a-host.md, whose other tests are in tests/hosts."""
    return painter_base(add_painter(tmp_path, monkeypatch))


def test_a_base_without_labels_takes_no_classes(painter):
    with pytest.raises(SmidgenError, match="painter base has no label table for 2 classes"):
        _build("bitfit", painter, ("ant", "bee"))
