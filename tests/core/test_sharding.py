"""Weights of which each process has a part: what the network gives, and what is there at once. The
processes are networks in one here; real ones are in tests/training/test_shard.py.
"""

import copy

import pytest
import torch
from torch import nn

from smidgen.core.bringing import Group
from smidgen.core.quantising import quantise
from smidgen.core.sharding import alone, count_alone, group_of, part_bytes, part_of, shard
from smidgen.core.storage import cast, move, outside, repeated_layers, runs_on
from smidgen.core.widening import PART
from smidgen.training.peak import Peak
from tests.core.test_offload import KEPT
from tests.core.test_storage import Layers, assert_learns_alike, passes
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import TINY_HOSTS

COUNT = 3  # divides few sizes: the last part is filled up


def parts(network):
    return [layer._buffers[PART] for layer in repeated_layers(network)]


def sharded(network, count=COUNT, rank=1, ahead=True):
    """The network as the process of this rank has it, beside those of the others."""
    all_of_them = []

    def gather(own):
        asked = [part.data_ptr() for part in parts(all_of_them[rank])]
        place = asked.index(own.data_ptr())
        return torch.cat([parts(one)[place] for one in all_of_them])

    for number in range(count):
        one = copy.deepcopy(network)
        shard(one, "cpu", Group(number, count, gather), ahead=ahead)
        all_of_them.append(one)
    return all_of_them[rank]


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("host", TINY_HOSTS)
def test_a_network_gives_the_same_bits_from_parts_of_its_weights(host, kept, autocast):
    network = law_base(host).denoiser.requires_grad_(False).float()
    KEPT[kept](network)
    expected = passes(host, network, autocast)
    other = sharded(network)
    before = [part.clone() for part in parts(other)]
    assert len(outside(other)) == len(before) > 0
    for _ in range(3):  # the second time what comes next is known
        found = passes(host, other, autocast)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    assert all(map(torch.equal, parts(other), before))
    shapes = {name: (t.shape, t.dtype) for name, t in network.state_dict().items()}
    assert {name: (t.shape, t.dtype) for name, t in other.state_dict().items()} == shapes


@pytest.mark.parametrize("method", ["bitfit", "difffit", "lora", "adapter", "adaptformer", "vpt"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("host", ["dit", "unet"])
def test_a_delta_has_the_same_gradients_bit_for_bit(host, checkpointed, method):
    base = law_base(host)
    base.denoiser.float().requires_grad_(False)
    if checkpointed:
        TINY_HOSTS[host].checkpoint(base.denoiser)
    delta = tiny_delta(base, method).float()
    assert_learns_alike(delta, host, base.denoiser, sharded(base.denoiser))


@pytest.mark.parametrize("ahead", [False, True])
def test_no_more_than_the_weight_that_runs_and_the_next_are_there_as_a_whole(ahead):
    network, x = Layers(8, 256).requires_grad_(False), torch.randn(1, 256).requires_grad_(True)
    one = 4 * 256 * 256  # bytes of a weight
    shard(network, "cpu", alone(4), ahead=ahead)
    assert part_bytes(network) == 8 * one // 4
    with Peak(network) as peak:
        for _ in range(2):
            network(x).sum().backward()
    assert one * (1 + ahead) <= peak.highest < one * (1.5 + ahead)


def test_parts_are_equally_long_and_together_the_weight():
    weight = torch.arange(10.0).view(2, 5)
    found = [part_of(weight, Group(rank, 4, torch.clone)) for rank in range(4)]
    assert [part.tolist() for part in found] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 0, 0]]
    assert part_of(weight, Group(3, 12, torch.clone)).tolist() == [3]
    assert part_of(weight, Group(11, 12, torch.clone)).tolist() == [0]


def test_what_is_shared_is_shared_still_and_what_is_not_repeated_stays_whole():
    network = nn.ModuleDict({"first": nn.Linear(4, 4), "blocks": Layers(3, 4)})
    layers = network["blocks"].layers
    layers[2].weight = layers[0].weight
    shard(network, "cpu", alone(2))
    assert layers[2].weight is layers[0].weight
    assert parts(network)[2] is parts(network)[0]
    assert (part_bytes(network), outside(network)) == (2 * 4 * 8, [4 * 16, 4 * 16])
    assert not network["first"].weight.is_meta


def test_moving_and_casting_take_the_parts_along():
    network, x = Layers(2, 4).requires_grad_(False), torch.randn(1, 4).bfloat16()
    expected = copy.deepcopy(network).bfloat16()(x)
    shard(network, "cpu", alone(1))
    cast(network, torch.bfloat16)
    assert {part.dtype for part in parts(network)} == {torch.bfloat16}
    assert torch.equal(network(x), expected)
    move(network, "meta")
    assert {part.device.type for part in parts(network)} == {"meta"}
    assert (runs_on(network), group_of(network).count) == (torch.device("meta"), 1)


def test_a_call_that_breaks_off_leaves_no_weight_behind():
    network = sharded(Layers(2, 4).requires_grad_(False))
    before = [id(parameter) for parameter in network.parameters()]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(torch.zeros(1, 5))
    assert [id(parameter) for parameter in network.parameters()] == before


def test_what_is_counted_alone_asks_nobody():
    def nobody(part):
        raise AssertionError("asked")

    network = Layers(2, 4).requires_grad_(False)
    quantise(network, "int8")
    shard(network, "cpu", Group(1, 2, nobody))
    with pytest.raises(AssertionError, match="asked"):
        network(torch.randn(1, 4))
    count_alone(network)
    assert network(torch.randn(1, 4)).shape == (1, 4)
    assert group_of(network).count == 2
