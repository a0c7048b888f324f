"""Weights outside the device: what the network gives, what is brought, and for how long. The device
is the CPU here, to which a weight comes as a copy.
"""

import copy

import pytest
import torch
from torch import nn

from smidgen.core.bringing import Bringing
from smidgen.core.quantising import quantise
from smidgen.core.storage import (
    cast,
    computes_in,
    move,
    narrow,
    offload,
    outside,
    repeated_layers,
    runs_on,
)
from smidgen.training.peak import Peak
from tests.core.test_storage import Layers, assert_learns_alike, passes
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import TINY_HOSTS
from tests.tiny.weights import numbers

KEPT = {
    "float32": lambda network: None,
    "bf16": lambda n: narrow(n, torch.bfloat16),
    "8bit": lambda n: quantise(n, "int8"),
    "4bit": lambda n: quantise(n, "nf4"),
}


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("host", TINY_HOSTS)
def test_a_network_gives_the_same_bits_with_its_weights_outside(host, kept, autocast):
    network = law_base(host).denoiser.requires_grad_(False).float()
    KEPT[kept](network)
    expected = passes(host, network, autocast)
    other = copy.deepcopy(network)
    offload(other, "cpu", ahead=True)
    before = {name: tensor.clone() for name, tensor in numbers(other).items()}
    assert len(outside(other)) == len(list(repeated_layers(network))) > 0
    for _ in range(3):  # the second time what comes next is known
        found = passes(host, other, autocast)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert list(other.state_dict()) == list(network.state_dict()), "nor a name, nor their order"
    after = numbers(other)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("method", ["full", "bitfit", "difffit", "lora", "adapter", "adaptformer"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("host", ["dit", "unet"])
def test_a_delta_has_the_same_gradients_bit_for_bit(host, checkpointed, method):
    base = law_base(host)
    base.denoiser.float().requires_grad_(False)
    if checkpointed:
        TINY_HOSTS[host].checkpoint(base.denoiser)
    delta = tiny_delta(base, method).float()
    there = copy.deepcopy(base.denoiser)
    offload(there, "cpu", ahead=True)
    assert_learns_alike(delta, host, base.denoiser, there)


@pytest.mark.parametrize("ahead", [False, True])
def test_no_more_than_the_weight_that_runs_and_the_next_are_on_the_device(ahead):
    network, x = Layers(8, 256).requires_grad_(False), torch.randn(1, 256).requires_grad_(True)
    one = 4 * 256 * 256  # bytes of a weight
    offload(network, "cpu", ahead=ahead)
    with Peak(network) as peak:
        for _ in range(2):
            network(x).sum().backward()
    assert one * (1 + ahead) <= peak.highest < one * (1.5 + ahead)


def test_what_comes_next_is_that_of_the_last_time_and_a_wrong_guess_changes_nothing():
    weights = [torch.full((2,), float(number)) for number in range(4)]
    bringing = Bringing(torch.device("cpu"), ahead=True)
    started = []
    begin = bringing._started
    bringing._started = lambda own: started.append(int(own[0])) or begin(own)
    for order in ((0, 1, 2, 3), (0, 1, 2, 3), (0, 2, 1, 3)):
        for number in order:
            found = bringing(weights[number], again=False)
            assert torch.equal(found, weights[number])
            assert found.data_ptr() != weights[number].data_ptr()
    # nothing is known the first time; then what followed, 0 after 3 too, and now 2 after 0
    assert started == [1, 2, 3, 0, 1, 3, 2, 0]


def test_what_is_not_repeated_stays_on_the_device_and_moves_with_it():
    network = nn.ModuleDict({"first": nn.Linear(4, 4), "blocks": Layers(2, 4)})
    offload(network, "meta")
    assert runs_on(network) == torch.device("meta")
    names = {name for name, tensor in network.named_parameters() if not tensor.is_meta}
    assert names == {"blocks.layers.0.weight", "blocks.layers.1.weight"}
    assert outside(network) == [4 * 16, 4 * 16]


def test_moving_and_casting_leave_them_outside():
    network = Layers(2, 4).requires_grad_(False)
    offload(network, "cpu")
    own = network.layers[0].weight
    move(network, "meta")
    assert network.layers[0].weight is own
    assert (own.device.type, network.layers[0].bias.device.type) == ("cpu", "meta")
    assert runs_on(network) == torch.device("meta")
    cast(network, torch.bfloat16)
    assert (own.dtype, computes_in(network)) == (torch.bfloat16, torch.bfloat16)


def test_a_call_that_breaks_off_leaves_the_weights_where_they_were():
    network = Layers(2, 4).requires_grad_(False)
    offload(network, "cpu")
    before = [id(parameter) for parameter in network.parameters()]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(torch.zeros(1, 5))
    assert [id(parameter) for parameter in network.parameters()] == before
