"""Weights in 8 bit under a network that computes in another precision."""

import copy

import pytest
import torch
from torch import nn

from smidgen.core.quantising import quantise
from smidgen.core.storage import cast, computes_in, stored_bytes
from smidgen.core.widening import EIGHT_BIT
from smidgen.errors import SmidgenError
from smidgen.training.peak import Peak
from tests.core.test_storage import Layers, assert_learns_alike, passes
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import TINY_HOSTS

IN_8_BIT = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def eighths(network):
    """A copy whose weights have been through 8 bit, by the definition."""
    other = copy.deepcopy(network)
    for module in other.modules():
        if isinstance(module, IN_8_BIT):
            rows = module.weight.data.float().flatten(1)
            scale = (rows.abs().amax(1, keepdim=True) / 127).clamp(min=1e-38)
            module.weight.data = ((rows / scale).round() * scale).view_as(module.weight)
    return other


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("host", TINY_HOSTS)
def test_a_network_gives_what_its_rounded_weights_give_bit_for_bit(host, autocast):
    network = law_base(host).denoiser.requires_grad_(False).float()
    expected = passes(host, eighths(network), autocast)
    kept = copy.deepcopy(network)
    quantise(kept, "int8")
    before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
    found = passes(host, kept, autocast)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert computes_in(kept) == torch.float32
    after = kept.state_dict()
    assert set(after) == set(network.state_dict()), "and no name changes"
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for module in kept.modules():
        if isinstance(module, IN_8_BIT):
            assert module.weight.dtype == EIGHT_BIT
        elif isinstance(module, nn.Embedding | nn.LayerNorm | nn.GroupNorm):
            assert {p.dtype for p in module.parameters(recurse=False)} <= {torch.float32}


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_numbers_are_those_of_quanto(kind):
    quanto = pytest.importorskip("optimum.quanto")
    layer = nn.Linear(24, 16) if kind == "linear" else nn.Conv2d(24, 16, 3)
    theirs = nn.Sequential(copy.deepcopy(layer))
    quanto.quantize(theirs, weights=quanto.qint8)
    quanto.freeze(theirs)
    network = nn.Sequential(layer)
    quantise(network, "int8")
    assert torch.equal(network[0].weight, theirs[0].weight._data)
    x = torch.randn(2, *((24,) if kind == "linear" else (24, 5, 5)))
    torch.testing.assert_close(network(x), theirs(x))


@pytest.mark.parametrize("method", ["bitfit", "difffit", "lora", "adapter", "adaptformer"])
@pytest.mark.parametrize("host", ["dit", "unet"])
def test_a_delta_in_float32_acts_and_learns_as_on_the_rounded_weights(host, method):
    base = law_base(host)
    base.denoiser.float()
    rounded = eighths(base.denoiser)
    quantise(base.denoiser, "int8")
    delta = tiny_delta(base, method).float()
    assert_learns_alike(delta, host, rounded, base.denoiser)
    assert {p.dtype for p in delta.parameters()} == {torch.float32}


def test_copies_of_weights_are_refused_with_what_to_do():
    base = law_base("dit")
    whole = tiny_delta(base, "full")
    quantise(base.denoiser, "int8")
    for method in ("full", "vpt"):
        with pytest.raises(SmidgenError, match=f"{method} .*load it without base_precision int8"):
            tiny_delta(base, method)
    with pytest.raises(SmidgenError, match="kept in 4 or 8 bit, where no trained copy"):
        whole.attach(base.denoiser)
    tokens = tiny_delta(base, "vpt", final_layer=False).float()
    with tokens.float().attach(base.denoiser):
        pass


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_no_wide_copy_of_a_weight_waits_for_the_backward_pass(autocast):
    network, x = Layers(8, 256).requires_grad_(False), torch.randn(1, 256).requires_grad_(True)
    one = 4 * 256 * 256  # bytes of a wide weight
    quantise(network, "int8")
    with Peak(network) as peak, torch.autocast("cpu", autocast, enabled=autocast is not None):
        network(x).sum().backward()
    assert one < peak.highest < 2.5 * one


def test_a_byte_for_each_weight_and_four_for_each_channel():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 5, bias=False), nn.LayerNorm(5))
    quantise(network, "int8")
    weights, others = 8 * 3 * 9 + 5 * 8, 8 + 2 * 5
    assert stored_bytes(network) == weights + 4 * (8 + 5) + 4 * others


def test_a_channel_that_is_all_zero_and_weights_that_are_shared():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    first.weight.data[1] = 0
    second.weight = first.weight
    network = nn.Sequential(first, second)
    expected = eighths(network)(x := torch.randn(3, 4))
    quantise(network, "int8")
    assert first.weight is second.weight
    assert torch.equal(network(x), expected)


def test_casting_leaves_weights_and_scales():
    network = Layers(1, 8)
    wide = eighths(network).layers[0].weight
    quantise(network, "int8")
    cast(network, torch.bfloat16)
    assert computes_in(network) == torch.bfloat16
    eye = torch.eye(8, dtype=torch.bfloat16)
    network.layers[0].bias.data.zero_()
    assert torch.equal(network(eye), wide.T.relu().bfloat16()), "rounded once"


def test_half_precision_and_8_bit_in_one_network():
    from smidgen.core.storage import narrow

    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    narrow(network, torch.float16)
    expected = eighths(copy.deepcopy(network)).float()
    quantise(network, "int8")
    assert [p.dtype for p in network.parameters()] == [EIGHT_BIT] + [torch.float16] * 3
    assert torch.equal(network(x := torch.randn(2, 4)), expected(x))
