"""Weights in half precision under a network that computes in another: what it gives, and keeps."""

import copy

import pytest
import torch
from torch import nn

from smidgen.core.storage import cast, computes_in, narrow
from smidgen.errors import SmidgenError
from smidgen.training.peak import Peak
from tests.tiny.bases import law_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.hosts import TINY_HOSTS


def rounded(network, dtype):
    """A copy in float32 whose weights have been through that precision."""
    other = copy.deepcopy(network).float()
    for parameter in other.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return other


def passes(host, network, autocast=None):
    """What the network gives, and the gradient that reaches its input."""
    tiny = TINY_HOSTS[host]
    x, *others = tiny.inputs(torch.tensor([0, 2]))
    x, *others = (value.float() if value.is_floating_point() else value for value in (x, *others))
    x.requires_grad_(True)
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        output = tiny.call(network, x, *others)
    output.float().square().mean().backward()
    return output.detach(), x.grad


def assert_learns_alike(delta, host, *networks):
    """Its outputs and gradients are the same bits on both networks, and not all are 0."""
    found = []
    for network in networks:
        delta.requires_grad_(True).zero_grad()
        with delta.attach(network):
            output, _ = passes(host, network)
        found.append((output, [p.grad.clone() for p in delta.parameters()]))
    (one, gradients), (other, others) = found
    assert torch.equal(one, other)
    assert all(map(torch.equal, gradients, others))
    assert any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "autocast"])
@pytest.mark.parametrize("host", TINY_HOSTS)
def test_a_network_gives_what_its_rounded_weights_give_bit_for_bit(host, autocast):
    network = law_base(host).denoiser.requires_grad_(False)
    for dtype in (torch.float16, torch.bfloat16):
        wide, kept = rounded(network, dtype), copy.deepcopy(network).float()
        narrow(kept, dtype)
        before = {name: tensor.clone() for name, tensor in kept.state_dict().items()}
        expected, found = (passes(host, one, autocast) for one in (wide, kept))
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert computes_in(kept) == torch.float32
        assert {p.dtype for p in kept.parameters()} == {dtype}
        after = kept.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("method", ["full", "bitfit", "difffit", "lora", "adapter", "adaptformer"])
def test_a_delta_in_float32_acts_and_learns_as_on_the_rounded_weights(method):
    base = law_base("unet")
    wide, kept = rounded(base.denoiser, torch.bfloat16), base.denoiser.float()
    narrow(kept, torch.bfloat16)
    base.denoiser = kept
    delta = tiny_delta(base, method).float()
    gradients = []
    for network in (wide, kept):
        delta.requires_grad_(True).zero_grad()
        with delta.attach(network):
            output, _ = passes("unet", network)
        gradients.append((output, [p.grad.clone() for p in delta.parameters()]))
    assert {p.dtype for p in delta.parameters()} == {torch.float32}
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert all(map(torch.equal, gradients[0][1], gradients[1][1]))


class Layers(nn.Module):
    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return x


def test_no_wide_copy_of_a_weight_waits_for_the_backward_pass():
    network, x = Layers(8, 256).requires_grad_(False), torch.randn(1, 256).requires_grad_(True)
    one = 4 * 256 * 256  # bytes of a wide weight
    narrow(network, torch.bfloat16)
    with Peak(network) as peak:
        network(x).sum().backward()
    assert one < peak.highest < 2 * one


def test_a_call_that_breaks_off_leaves_the_weights_as_they_were():
    network = Layers(2, 4)
    narrow(network, torch.bfloat16)
    before = [id(parameter) for parameter in network.parameters()]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        network(torch.zeros(1, 5))
    assert [id(parameter) for parameter in network.parameters()] == before
    saved = torch.ones(3, requires_grad=True).exp().grad_fn._saved_result
    assert saved.dtype == torch.float32, "nothing watches what others save"
    assert network(torch.zeros(1, 4)).dtype == torch.float32


def test_casting_ends_it():
    network = Layers(1, 4)
    narrow(network, torch.float16)
    cast(network, torch.bfloat16)
    assert computes_in(network) == torch.bfloat16
    assert network(torch.zeros(1, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_trained_copy_of_another_precision_is_refused_with_the_one_that_runs():
    base = law_base("unet")
    base.denoiser.float()
    narrow(base.denoiser, torch.bfloat16)
    delta = tiny_delta(base, "full").bfloat16()
    with pytest.raises(SmidgenError, match=r"bfloat16 on cpu in the delta, torch.float32 on"):
        delta.attach(base.denoiser)
