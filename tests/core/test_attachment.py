"""Attaching: what it leaves, how compiled code takes it, what it verifies and refuses."""

from types import SimpleNamespace

import jaxtyping
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from smidgen.core.delta import Delta
from smidgen.core.edits import Scale, Shift, Table, Weight
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from tests.tiny.deltas import provenance
from tests.tiny.handmade import NUM_OLD_ROWS, WIDTH, Network, by_hand, delta_of, edits, inputs
from tests.tiny.weights import lively

X, Y = inputs()
OLD_Y = Y % NUM_OLD_ROWS


def hooks(network):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in network.modules())


def gradients(network, delta):
    delta.zero_grad()
    network(X, Y).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in delta.named_parameters()}


def compiled(network):
    return torch.compile(network, fullgraph=True, backend="eager")


@pytest.fixture
def unchecked():
    """For tests that compile: torch.compile cannot trace the checks of annotated shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch.compiler.reset()


# What is left when it goes


def test_the_base_is_bit_for_bit_the_same_after_training_and_detaching():
    network = Network()
    before = {name: (tensor, tensor.clone()) for name, tensor in network.named_parameters()}
    attributes = set(vars(network))
    output = network(X, OLD_Y)
    delta = delta_of(network)
    optimiser = torch.optim.SGD(delta.parameters(), lr=0.1)
    with delta.attach(network):
        for _ in range(2):
            network(X, Y).square().mean().backward()
            optimiser.step()
        assert not torch.equal(network(X, OLD_Y), output)
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    for name, (same, value) in before.items():
        assert after[name] is same
        assert torch.equal(after[name], value)
    assert hooks(network) == 0
    assert set(vars(network)) == attributes
    assert torch.equal(network(X, OLD_Y), output)


def test_detaching_twice_or_after_an_error_leaves_nothing():
    network = Network()
    attachment = delta_of(network).attach(network)
    with pytest.raises(ZeroDivisionError), attachment:
        raise ZeroDivisionError
    attachment.detach()
    assert hooks(network) == 0
    delta_of(network).attach(network).detach()


def test_a_delta_attaches_again_after_detaching():
    network = Network()
    delta = delta_of(network)
    with delta.attach(network):
        once = network(X, Y)
    with delta.attach(network):
        assert torch.equal(network(X, Y), once)


# Compiled code


@pytest.mark.usefixtures("unchecked")
def test_compiling_an_attached_network_gives_the_same_output_and_gradients():
    network = Network()
    delta = delta_of(network)
    with delta.attach(network):
        plain, expected = network(X, Y), gradients(network, delta)
        whole = compiled(network)
        torch.testing.assert_close(whole(X, Y), plain)
        torch.testing.assert_close(gradients(whole, delta), expected)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("eager_first", [True, False])
def test_new_values_reach_compiled_code_without_compiling_again(eager_first):
    network = Network()
    delta, other = delta_of(network), delta_of(network, seed=9)
    expected = by_hand(network, other, X, Y)
    counter = CompileCounter()
    with delta.attach(network):
        if eager_first:
            network(X, Y)
        whole = torch.compile(network, fullgraph=True, backend=counter)
        whole(X, Y)
        delta.copy_(other)
        torch.testing.assert_close(whole(X, Y), expected)
        torch.testing.assert_close(whole(X, Y), expected)
    assert counter.frame_count == 1
    assert delta.edits["label_table"].ids is None


@pytest.mark.usefixtures("unchecked")
def test_code_compiled_before_attaching_or_detaching_is_not_stale():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    whole = compiled(network)
    base = network(x)
    for round in range(9):  # more often than torch.compile compiles one function again
        torch.testing.assert_close(whole(x), base)
        shift = Shift(Site("1"), 2)
        shift.offset.data.fill_(1 + round)
        with Delta({"shift": shift}, provenance()).attach(network):
            torch.testing.assert_close(whole(x), base + 1 + round)
    torch.testing.assert_close(whole(x), base)


@pytest.mark.usefixtures("unchecked")
def test_a_compiled_network_is_refused():
    network = Network()
    with pytest.raises(SmidgenError, match="is compiled"):
        delta_of(network).attach(compiled(network))
    network.blocks[0].mixer.compile(backend="eager")
    with pytest.raises(SmidgenError, match=r'"blocks\.0\.mixer" is compiled'):
        delta_of(network).attach(network)
    assert hooks(network) == 0


@pytest.mark.usefixtures("unchecked")
def test_blocks_compiled_after_attaching_are_not_called_unreached():
    network = Network()
    delta = delta_of(network)
    expected = by_hand(network, delta, X, Y)
    delta.attach(network)
    for block in network.blocks:
        block.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(network(X, Y), expected)


# The first forward


def test_the_hooks_that_verify_are_gone_after_the_first_forward():
    network = Network()
    attachment = delta_of(network).attach(network)
    watched = hooks(network)
    network(X, Y)
    permanent = hooks(network)
    actions = sum(len(edit.actions()) for edit in attachment.delta.edits.values())
    assert permanent == actions + 1 < watched  # one ends what edits keep from site to site


def test_a_site_that_did_not_fire_raises_until_it_does():
    network = Network()
    network.skip_first_mixer = True
    delta_of(network).attach(network)
    for _ in range(2):
        with pytest.raises(SmidgenError, match=r"ran past 5 sites, first blocks\.0\.mixer\.out of"):
            network(X, Y)
    network.skip_first_mixer = False
    network(X, Y)
    network.skip_first_mixer = True
    network(X, Y)  # verified once


def test_an_output_that_is_none_in_every_call_did_not_fire():
    network = Network()
    edit = Scale(Site("blocks.1", index=0), WIDTH)
    Delta({"none": edit}, provenance()).attach(network)
    with pytest.raises(SmidgenError, match=r"ran past 1 sites, first blocks\.1\.out\[0\]"):
        network(X, OLD_Y)


@pytest.mark.parametrize("size", [1, 4])
def test_wrong_channels_of_a_module_that_only_a_call_knows_are_refused(size):
    network = Network()
    Delta({"gamma": Scale(Site("blocks.0.mixer"), size)}, provenance()).attach(network)
    with pytest.raises(SmidgenError, match=f"mixer.out has {WIDTH} channels, .* expects {size}"):
        network(X, OLD_Y)


# What may be attached to what


@pytest.mark.parametrize(
    "edit",
    [
        Shift(Site("nowhere"), WIDTH),
        Shift(Site("head"), WIDTH),
        Shift(Site("blocks.0", "in", argument="nothing"), WIDTH),
        Weight("head", {"weight": torch.zeros(2, 2)}),
        Weight("head", {"gain": torch.zeros(2, 2)}),
        Table(Site("table", "in"), Site("table"), 4, torch.zeros(2, WIDTH)),
    ],
)
def test_a_delta_for_another_architecture_is_refused_and_leaves_nothing(edit):
    network = Network()
    before = dict(network.named_parameters())
    good = {name: e for name, e in edits(network).items() if not e.claims()}
    delta = Delta({**good, "bad": edit}, provenance())
    with pytest.raises(SmidgenError, match="give the base that the delta was made for"):
        delta.attach(network)
    assert hooks(network) == 0
    assert all(before[name] is parameter for name, parameter in network.named_parameters())


def test_a_delta_is_attached_to_a_network_once():
    network = Network()
    delta = delta_of(network)
    with delta.attach(network), pytest.raises(SmidgenError, match="attached to the model already"):
        delta.attach(network)


def test_two_deltas_act_together_where_nothing_is_replaced_twice():
    network = nn.Linear(2, 2)
    x = torch.ones(1, 2)
    y = network(x)
    one = lively(Delta({"a": Scale(Site(""), 2)}, provenance()), 1)
    two = lively(Delta({"a": Shift(Site(""), 2)}, provenance()), 2)
    first, second = one.attach(network), two.attach(network)
    together = y * one.edits["a"].gain + two.edits["a"].offset
    torch.testing.assert_close(network(x), together)
    first.detach()
    torch.testing.assert_close(network(x), y + two.edits["a"].offset)
    second.detach()
    assert torch.equal(network(x), y)


def test_two_deltas_that_replace_the_same_are_refused():
    network = Network()
    table = edits(network)["label_table"]
    cases = [
        ({"a": Weight("head", {"bias": network.head.bias})}, {"b": edits(network)["head.copy"]}),
        ({"a": Weight("", {"head.bias": network.head.bias})}, {"b": edits(network)["head.copy"]}),
        ({"a": table}, {"b": edits(network)["label_table"]}),
        ({"a": table}, {"b": Weight("table", {"weight": network.table.weight})}),
    ]
    for one, two in cases:
        with Delta(one, provenance()).attach(network):
            second = Delta(two, provenance())
            with pytest.raises(SmidgenError, match=r'"a" and "b" both replace (head|table)'):
                second.attach(network)
        second.attach(network).detach()


def test_weights_of_two_deltas_come_off_in_either_order():
    network = Network()
    before = dict(network.named_parameters())
    one = Delta({"a": Weight("head", {"bias": network.head.bias})}, provenance())
    two = Delta({"a": Weight("head", {"weight": network.head.weight})}, provenance())
    first, second = one.attach(network), two.attach(network)
    first.detach()
    second.detach()
    assert all(before[name] is parameter for name, parameter in network.named_parameters())


def test_a_delta_attaches_to_what_carries_a_denoiser_and_to_nothing_else():
    network = Network()
    delta = delta_of(network)
    with delta.attach(SimpleNamespace(denoiser=network)):
        assert hooks(network) > 0
    with pytest.raises(SmidgenError, match="not to a SimpleNamespace"):
        delta.attach(SimpleNamespace(denoiser="tiny"))


def test_an_axis_that_is_not_there_is_refused():
    network = Network()
    wrong = Delta({"a": Shift(Site("blocks.1", index=1, axis=5), 8)}, provenance())
    with wrong.attach(network), pytest.raises(SmidgenError, match="has no axis 5; give the base"):
        network(X, OLD_Y)
