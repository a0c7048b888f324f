"""Which methods on which hosts the laws run: a part by default, with --all-laws the product.

A test that asks for `case` runs once for each pair that `tests.laws.refusals` does not except;
`@pytest.mark.excepting(table)` names the table of a single law, `labelled` keeps hosts with labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from smidgen.core.delta import Delta
from smidgen.core.edit import Edit
from smidgen.models.base import Base
from tests.laws.refusals import REFUSED, reason
from tests.tiny.bases import NEW_CLASSES, law_base
from tests.tiny.deltas import DENOISER_METHODS, tiny_delta
from tests.tiny.hosts import TINY_HOSTS, TinyHost, all_labels

FULL_HOSTS = ("dit", "unet")  # by default: every method here,
FULL_METHODS = ("difffit", "lora")  # and these on every host
FEW = 8  # edits that a law goes through by default
STD = {"full": 0.05}  # how far tensors are from their start; more would saturate a whole network


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-laws", action="store_true", help="every method on every tiny host")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "excepting(table): pairs that this law excepts by name")
    config.addinivalue_line("markers", "only(*methods): the methods that a law speaks of")
    config.addinivalue_line("markers", "labelled: a law of hosts with a label table")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    every = metafunc.config.getoption("--all-laws", default=False)
    excepting = metafunc.definition.get_closest_marker("excepting")
    only = metafunc.definition.get_closest_marker("only")
    labelled = metafunc.definition.get_closest_marker("labelled")
    pairs = [
        (method, host)
        for host in TINY_HOSTS
        for method in DENOISER_METHODS
        if (every or host in FULL_HOSTS or method in FULL_METHODS)
        and (method, host) not in REFUSED
        and not (excepting and reason(excepting.args[0], method, host))
        and not (only and method not in only.args)
        and not (labelled and not TINY_HOSTS[host].labelled)
    ]
    if "first" in metafunc.fixturenames:  # compiling takes seconds, so by default fewer
        runs = [
            ((method, host), first)
            for method, host in pairs
            for first in ("eager", "compiled")
            if every or (first == "compiled" and (host == "dit" or method == "lora"))
        ]
        ids = ["-".join((*pair, first)) for pair, first in runs]
        metafunc.parametrize(("case", "first"), runs, ids=ids, indirect=["case"])
    else:
        metafunc.parametrize("case", pairs, ids=["-".join(pair) for pair in pairs], indirect=True)


@pytest.fixture(autouse=True)
def hooks_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of a function's shapes is compiled when the function is made, which for the hooks
    of an attachment took most of the time of these laws; functions of modules stay checked.
    """
    checked = jaxtyping.jaxtyped

    def unless_inner(*, typechecker: Any) -> Any:
        def decorate(target: Any) -> Any:
            inner = "<locals>" in getattr(target, "__qualname__", "")
            return target if inner else checked(target, typechecker=typechecker)

        return decorate

    monkeypatch.setattr(jaxtyping, "jaxtyped", unless_inner)


@dataclass
class Case:
    """A base, a delta of one method with new classes, and inputs with every label. `every`: whether
    a law that goes through the edits takes all of them, as it does with --all-laws.
    """

    tiny: TinyHost
    base: Base
    model: nn.Module
    method: str
    host: str
    delta: Delta
    inputs: tuple[Tensor, ...]
    every: bool

    def call(self, model: nn.Module | None = None) -> Tensor:
        return self.tiny.call(self.model if model is None else model, *self.inputs)

    def attached(self, delta: Delta | None = None, strength: float = 1.0) -> Tensor:
        """The output with a delta, without gradient."""
        with torch.no_grad(), (delta or self.delta).attach(self.model, strength):
            return self.call()

    def some(self, edits: Mapping[str, Edit]) -> dict[str, Edit]:
        """All edits, or a few from all over the network."""
        step = 1 if self.every else max(1, len(edits) // FEW)
        return dict(list(edits.items())[::step])

    def assert_close(self, output: Tensor, expected: Tensor, at_least: float = 0.0) -> None:
        """Equal but for the rounding of the family, or for more where more is allowed."""
        tolerance = max(self.tiny.rounding, at_least)
        torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)

    def make(self, *, classes: tuple[str, ...] = NEW_CLASSES, **config: Any) -> Delta:
        """Another delta of the method."""
        config = {"std": STD.get(self.method, 0.2)} | config
        return tiny_delta(self.base, self.method, classes, **config)

    def use_labels(self, labels: Tensor) -> None:
        self.inputs = self.tiny.inputs(labels)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    method, host = request.param
    base = law_base(host)
    tiny = TINY_HOSTS[host]
    return Case(
        tiny=tiny,
        base=base,
        model=base.denoiser,
        method=method,
        host=host,
        delta=tiny_delta(base, method, std=STD.get(method, 0.2)),
        inputs=tiny.inputs(all_labels(NEW_CLASSES)),
        every=request.config.getoption("--all-laws", default=False),
    )
