"""Weights in 4 bit under a network that computes in another precision. Their numbers are checked in
test_normal_float.py; with weights elsewhere, in test_offload.py and test_sharding.py.
"""

import copy

import pytest
import torch
from torch import nn

from smidgen.core.normal_float import num_bytes, packed, unpacked, values_of_bytes
from smidgen.core.quantising import quantise
from smidgen.core.storage import (
    cast,
    computes_in,
    move,
    narrow,
    quantised_in,
    repeated_layers,
    runs_on,
    stored_bytes,
)
from smidgen.core.widening import FOUR_BIT, PACKED
from smidgen.errors import SmidgenError
from smidgen.training.peak import Peak
from tests.core.test_storage import Layers, assert_learns_alike, passes
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import TINY_HOSTS
from tests.tiny.weights import numbers


def rounded(network):
    """A copy whose repeated weights have been through 4 bit."""
    other = copy.deepcopy(network)
    for layer in repeated_layers(other):
        weight = layer.weight.data
        kept = unpacked(packed(weight), weight.shape, values_of_bytes())
        layer.weight.data = kept.to(weight.dtype)
    return other


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("host", TINY_HOSTS)
def test_a_network_gives_what_its_rounded_weights_give_bit_for_bit(host, autocast):
    network = law_base(host).denoiser.requires_grad_(False).float()
    expected = passes(host, rounded(network), autocast)
    kept = copy.deepcopy(network)
    quantise(kept, "nf4")
    before = {name: tensor.clone() for name, tensor in numbers(kept).items()}
    found = passes(host, kept, autocast)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    after = numbers(kept)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (computes_in(kept), quantised_in(kept)) == (torch.float32, "nf4")
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert {name: tensor.shape for name, tensor in kept.state_dict().items()} == shapes
    in_4_bit = {layer.weight for layer in repeated_layers(kept)}
    assert {p for p in kept.parameters() if p.dtype == FOUR_BIT} == in_4_bit
    assert {p.dtype for p in kept.parameters() if p not in in_4_bit} == {torch.float32}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("method", ["bitfit", "difffit", "lora", "adapter", "adaptformer", "vpt"])
@pytest.mark.parametrize("host", ["dit", "unet"])
def test_a_delta_in_float32_acts_and_learns_as_on_the_rounded_weights(host, method, checkpointed):
    base = law_base(host)
    base.denoiser.float()
    if checkpointed:
        TINY_HOSTS[host].checkpoint(base.denoiser)
    wide = rounded(base.denoiser)
    quantise(base.denoiser, "nf4")
    delta = tiny_delta(base, method).float()
    assert_learns_alike(delta, host, wide, base.denoiser)


def test_copies_of_weights_in_blocks_are_refused_with_what_to_do():
    base = law_base("dit")
    whole = tiny_delta(base, "full")
    quantise(base.denoiser, "nf4")
    with pytest.raises(SmidgenError, match=r"keeps in nf4; load it without base_precision nf4"):
        tiny_delta(base, "full")
    with pytest.raises(SmidgenError, match="kept in 4 or 8 bit, where no trained copy"):
        whole.attach(base.denoiser)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
def test_no_wide_copy_of_a_weight_waits_for_the_backward_pass(autocast):
    network, x = Layers(8, 256).requires_grad_(False), torch.randn(1, 256).requires_grad_(True)
    one = 4 * 256 * 256  # bytes of a wide weight
    quantise(network, "nf4")
    with Peak(network) as peak, torch.autocast("cpu", autocast, enabled=autocast is not None):
        network(x).sum().backward()
    assert one < peak.highest < 2.5 * one


def test_what_is_not_repeated_stays_and_bytes_are_counted():
    network = nn.ModuleDict({"first": nn.Linear(4, 4), "blocks": Layers(2, 100)})
    quantise(network, "nf4")
    assert network["first"].weight.dtype == torch.float32
    codes = 8 * 256  # of what the bytes of each weight stand for
    assert stored_bytes(network) == 4 * 20 + 2 * (num_bytes(100 * 100) + 4 * 100 + codes)
    assert 8 * num_bytes(100 * 100) == pytest.approx(4.127 * 100 * 100, rel=0.01)


def test_weights_that_are_shared_are_packed_once():
    network = Layers(3, 8)
    network.layers[2].weight = network.layers[0].weight
    expected = rounded(network)(x := torch.randn(3, 8))
    quantise(network, "nf4")
    assert network.layers[2].weight is network.layers[0].weight
    assert network.layers[2]._buffers[PACKED] is network.layers[0]._buffers[PACKED]
    assert torch.equal(network(x), expected)


def test_casting_and_copying_leave_the_bytes_and_moving_takes_them_along():
    network = Layers(1, 8).requires_grad_(False)
    wide = rounded(network).layers[0].weight
    quantise(network, "nf4")
    assert runs_on(network) == torch.device("cpu"), "though its first parameter is a shape"
    cast(network, torch.bfloat16)
    assert computes_in(network) == torch.bfloat16
    network.layers[0].bias.data.zero_()
    eye = torch.eye(8, dtype=torch.bfloat16)
    for one in (network, copy.deepcopy(network)):
        move(one, "cpu")
        assert torch.equal(one(eye), wide.T.relu().bfloat16()), "rounded once"
    move(network, "meta")
    assert runs_on(network) == network.layers[0]._buffers[PACKED].device == torch.device("meta")


def test_weights_that_came_in_half_precision_are_packed_from_their_numbers():
    network, wide = Layers(1, 4), Layers(1, 4)
    narrow(network, torch.float16)
    wide.load_state_dict(network.state_dict())
    quantise(network, "nf4")
    assert [p.dtype for p in network.parameters()] == [FOUR_BIT, torch.float16]
    assert torch.equal(network(x := torch.randn(2, 4)), rounded(wide)(x))
