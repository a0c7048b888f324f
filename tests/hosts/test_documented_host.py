"""docs/add-a-host.md is true: methods work on the network that it describes."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from smidgen.core.fold import fold
from smidgen.errors import SmidgenError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from tests.laws.tiny import TinyBase, randomise

PAGE = Path(__file__).parents[2] / "docs" / "add-a-host.md"


@pytest.fixture
def page():
    names: dict = {}
    for source in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(source, str(PAGE), "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture
def base(page):
    torch.manual_seed(0)
    model = page.Painter().double().requires_grad_(False)
    return TinyBase(
        denoiser=model,
        host=page.host(model),
        class_names=("ant", "bee", "cat"),
        name="painter",
        fingerprint="",
    )


@pytest.mark.parametrize("method", ["full", "bitfit", "difffit"])
def test_a_method_trains_and_folds_on_the_documented_host(page, base, method):
    classes = ("dog", "elk", "fox", "gnu")
    delta = build_delta(
        method, base, configure(method), classes, torch.Generator().manual_seed(0)
    ).double()
    randomise(delta, 0.2, seed=1)
    x = torch.randn(5, 4, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = x, torch.linspace(10, 900, 5).double(), torch.arange(5)
    with delta.attach(base.denoiser):
        output = base.denoiser(*inputs)
    output.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in delta.parameters())
    folded = page.Painter(num_classes=4).double()
    folded.load_state_dict(fold(delta, base.denoiser.state_dict(), base.host.folds))
    torch.testing.assert_close(folded(*inputs), output, atol=1e-12, rtol=1e-12)


def test_every_bias_of_the_documented_host_is_listed(base):
    expected = {n for n, _ in base.denoiser.named_parameters() if n.endswith(".bias")}
    assert {f"{site.module}.bias" for site in base.host.biases} == expected


def test_a_method_that_needs_a_missing_tap_names_it(base):
    with pytest.raises(SmidgenError, match=r"attn\.qkv\.out"):
        build_delta(
            "difffit", base, configure("difffit", {"gammas": ("qkv",)}), ("dog",), torch.Generator()
        )


def test_the_documented_family_calls_the_network(page, base):
    x, t, labels = (
        torch.randn(2, 4, 2, 2).double(),
        torch.tensor([3.0, 700.0]),
        torch.tensor([0, 3]),
    )
    output = page.FAMILY.predict(base.denoiser, x, t, {"labels": labels})
    assert torch.equal(output, base.denoiser(x, t, labels))
