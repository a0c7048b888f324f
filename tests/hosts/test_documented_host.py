"""docs/add-a-host.md is true: methods work on the network that it describes."""

import pytest
import torch

from smidgen.core.fold import fold
from smidgen.errors import SmidgenError
from smidgen.hosts.host import find_family, find_host
from tests.tiny.deltas import tiny_delta
from tests.tiny.painter import add_painter, painter_base


@pytest.fixture
def package(tmp_path, monkeypatch):
    torch.manual_seed(0)
    return add_painter(tmp_path, monkeypatch)


@pytest.fixture
def base(package):
    return painter_base(package)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 4, 2, 2, generator=generator, dtype=torch.float64)
    text = torch.randn(5, 3, 32, generator=generator, dtype=torch.float64)
    return x, torch.linspace(10, 900, 5).double(), text


OPTIONS = {"full": {}, "bitfit": {}, "difffit": {}, "lora": {"targets": ("linear",)}}


@pytest.mark.parametrize("method", OPTIONS)
def test_a_method_trains_and_folds_on_the_documented_host(package, base, inputs, method):
    delta = tiny_delta(base, method, **OPTIONS[method])
    plain = base.denoiser(*inputs)
    with delta.attach(base.denoiser):
        output = base.denoiser(*inputs)
    assert not torch.allclose(output, plain)
    output.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in delta.parameters())
    folded = package.Painter().double()
    folded.load_state_dict(fold(delta, base.denoiser.state_dict(), base.host.folds))
    torch.testing.assert_close(folded(*inputs), output, atol=1e-12, rtol=1e-12)


def test_every_bias_of_the_documented_host_is_listed(base):
    expected = {n for n, _ in base.denoiser.named_parameters() if n.endswith(".bias")}
    assert {f"{site.module}.bias" for site in base.host.biases} == expected


def test_a_method_that_needs_a_missing_tap_names_it(base):
    with pytest.raises(SmidgenError, match=r"attn\.qkv\.out"):
        tiny_delta(base, "difffit", gammas=("qkv",))


def test_a_method_that_cannot_work_there_says_why(base):
    with pytest.raises(SmidgenError, match="its layers work on pixels"):
        tiny_delta(base, "vpt")


def test_the_documented_family_calls_the_network(base, inputs):
    x, t, text = inputs
    predict = find_family(base.denoiser).predict
    assert torch.equal(predict(base.denoiser, x, t, {"text": text}), base.denoiser(*inputs))
    with pytest.raises(SmidgenError, match='a painter base needs "text"'):
        predict(base.denoiser, x, t, {})


def test_a_class_without_its_line_in_the_table_gets_a_derived_host(package):
    class Other(package.Painter):
        pass

    assert find_host(Other()).family == "derived"
