"""What a delta computes while attached, and what it is by itself: count, copies, names, base."""

import copy

import pytest
import torch
from torch import nn

from smidgen.core.delta import Delta
from smidgen.core.edits import Scale, Shift, Table, Weight
from smidgen.core.fingerprint import fingerprint
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from tests.tiny.deltas import provenance
from tests.tiny.handmade import NUM_OLD_ROWS, Network, by_hand, delta_of, edits, inputs
from tests.tiny.weights import lively

X, Y = inputs()
OLD_Y = Y % NUM_OLD_ROWS


def gradients(network, delta):
    delta.zero_grad()
    network(X, Y).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in delta.named_parameters()}


# What an attached delta computes


def test_an_attached_delta_computes_what_is_written_out():
    network = Network()
    delta = delta_of(network)
    expected = by_hand(network, delta, X, Y)
    with delta.attach(network):
        torch.testing.assert_close(network(X, Y), expected)


def test_a_fresh_delta_is_the_identity():
    network = Network()
    ends = Site("table", "in"), Site("table")
    copy_of_table = Table(*ends, NUM_OLD_ROWS, network.table.weight)
    fresh = edits(network) | {"label_table": copy_of_table}
    # F.linear takes another path, with another last bit, for a weight that wants a gradient
    network.head.requires_grad_(True)
    before = network(X, OLD_Y)
    with Delta(fresh, provenance()).attach(network):
        assert torch.equal(network(X, OLD_Y), before)


@pytest.mark.parametrize("name", list(edits(Network())))
def test_every_edit_changes_the_output(name):
    network = Network()
    delta = delta_of(network)
    with delta.attach(network):
        whole = network(X, OLD_Y)
    rest = {key: edit for key, edit in delta_of(network).edits.items() if key != name}
    with Delta(rest, provenance()).attach(network):
        assert not torch.allclose(network(X, OLD_Y), whole, rtol=1e-2)


def test_edits_at_one_site_act_in_their_order():
    network = nn.Linear(2, 2)
    scale, shift = lively(Scale(Site(""), 2), 1), lively(Shift(Site(""), 2), 2)
    x = torch.ones(1, 2)
    y = network(x)
    with Delta({"scale": scale, "shift": shift}, provenance()).attach(network):
        torch.testing.assert_close(network(x), y * scale.gain + shift.offset)
    with Delta({"shift": shift, "scale": scale}, provenance()).attach(network):
        torch.testing.assert_close(network(x), (y + shift.offset) * scale.gain)


def test_every_trained_tensor_gets_a_gradient_and_no_other_does():
    network = Network()
    delta = delta_of(network)
    assert all(p.is_leaf and p.requires_grad for p in delta.parameters())
    own = list(network.parameters())
    with delta.attach(network):
        network(X, Y).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in delta.parameters())
    assert all(p.grad is None for p in own)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_attaching_does_not_change_requires_grad_of_the_base(requires_grad):
    network = Network().requires_grad_(requires_grad)
    own = list(network.parameters())
    with delta_of(network).attach(network):
        network(X, Y)
        assert all(p.requires_grad is requires_grad for p in own)


def test_gradient_checkpointing_gives_the_same_output_and_gradients():
    network = Network()
    delta = delta_of(network)
    with delta.attach(network):
        plain, expected = network(X, Y), gradients(network, delta)
        network.checkpointing = True
        torch.testing.assert_close(network(X, Y), plain, rtol=0, atol=0)
        torch.testing.assert_close(gradients(network, delta), expected, rtol=0, atol=0)


def test_a_first_forward_with_checkpointing_trains_too():
    network = Network()
    network.checkpointing = True
    delta = delta_of(network)
    with delta.attach(network):
        first = gradients(network, delta)
        torch.testing.assert_close(gradients(network, delta), first, rtol=0, atol=0)


def test_a_bfloat16_base_stays_bfloat16_with_a_float32_delta():
    network = Network()
    delta = delta_of(network)
    expected = by_hand(network, delta, X, Y)
    network.bfloat16()
    delta.edits["head.copy"].bfloat16()  # what replaces a parameter is as the base is
    with delta.attach(network):
        output = network(X.bfloat16(), Y)
        output.square().sum().backward()
    assert output.dtype == torch.bfloat16
    # a handful of roundings of relative size 2**-9 each
    torch.testing.assert_close(
        output.float(), expected, rtol=0.05, atol=0.05 * expected.std().item()
    )
    assert delta.edits["stem.gamma"].gain.grad.dtype == torch.float32


def test_a_delta_acts_under_autocast():
    network = Network()
    delta = delta_of(network)
    expected = by_hand(network, delta, X, Y)
    with delta.attach(network), torch.autocast("cpu", torch.bfloat16):
        output = network(X, Y)
        output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(
        output.float(), expected, rtol=0.05, atol=0.05 * expected.std().item()
    )
    assert all(p.grad.abs().sum() > 0 for p in delta.parameters())


# The delta itself


def test_a_delta_holds_its_edits_under_their_names_and_counts_its_parameters():
    network = Network()
    delta = delta_of(network)
    names = [f"{n}.{t}" for n, edit in edits(network).items() for t in edit.tensors()]
    assert sorted(delta.state_dict()) == sorted(names)
    assert list(delta.edits) == list(edits(network))
    sizes = [t.numel() for edit in edits(network).values() for t in edit.tensors().values()]
    assert delta.num_parameters() == sum(sizes)


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("a", "a.offset"), ("edits.a",)])
def test_a_name_that_begins_another_or_is_taken_is_refused(names):
    with pytest.raises(ValueError, match="taken"):
        Delta({name: Shift(Site(""), 2) for name in names}, provenance())


def test_copying_takes_over_values_and_provenance_also_while_attached():
    network = Network()
    delta, other = delta_of(network), delta_of(network, seed=9)
    other.provenance = provenance(base="other")
    expected = by_hand(network, other, X, Y)
    with delta.attach(network):
        network(X, Y)
        assert delta.copy_(other) is delta
        torch.testing.assert_close(network(X, Y), expected)
    assert delta.provenance == other.provenance
    other.edits["stem.bias"].offset.data.zero_()
    assert delta.edits["stem.bias"].offset.abs().sum() > 0, "values, not tensors, are taken over"


def test_copying_between_different_edits_is_refused():
    shift, wider = Shift(Site(""), 2), Shift(Site(""), 3)
    one = Delta({"a": shift}, provenance())
    with pytest.raises(SmidgenError, match='differ at edit "a"'):
        one.copy_(Delta({"a": wider}, provenance()))
    with pytest.raises(SmidgenError, match="1 edits, the other 2"):
        one.copy_(Delta({"a": shift, "b": wider}, provenance()))


def test_a_clone_is_equal_apart_and_attached_to_nothing():
    network = Network()
    delta = delta_of(network).to(torch.float64)
    network.double()
    with delta.attach(network):
        clone = delta.clone()
        network(X.double(), Y)
        with pytest.raises(SmidgenError, match="both replace"):
            clone.attach(network)
    assert clone.specs() == delta.specs()
    assert clone.provenance == delta.provenance
    for name, parameter in clone.named_parameters():
        other = delta.get_parameter(name)
        assert torch.equal(parameter, other)
        assert parameter.dtype == torch.float64
        assert parameter.data_ptr() != other.data_ptr()
        assert parameter.requires_grad
        assert parameter.is_leaf
    expected = by_hand(network, clone, X.double(), Y)
    with clone.attach(network):
        torch.testing.assert_close(network(X.double(), Y), expected)


def test_a_deep_copy_of_an_attached_delta_is_a_delta_of_its_own():
    network = Network()
    delta = delta_of(network)
    with delta.attach(network):
        twin = copy.deepcopy(delta)
    lively(twin, seed=9)
    expected = by_hand(network, twin, X, Y)
    with twin.attach(network):
        torch.testing.assert_close(network(X, Y), expected)


def test_a_delta_moved_while_attached_still_acts():
    network = Network()
    delta = delta_of(network)
    expected = by_hand(network, delta, X, Y)
    delta.attach(network)
    delta.to(torch.float64)
    network.double()
    torch.testing.assert_close(network(X.double(), Y).float(), expected)


def test_a_delta_on_the_meta_device_has_its_count_and_attaches():
    with torch.device("meta"):
        network = nn.Linear(3, 2)
        delta = Delta(
            {"gain": Scale(Site(""), 2), "w": Weight("", {"weight": network.weight})}, provenance()
        )
        assert delta.num_parameters() == 2 + 6
        with delta.attach(network):
            assert network(torch.zeros(5, 3)).shape == (5, 2)


def test_a_delta_knows_its_base_by_its_fingerprint():
    network = Network()
    delta = Delta({}, provenance(fingerprint=fingerprint(network.state_dict()), base="tiny"))
    delta.check_base(fingerprint(network.bfloat16().state_dict()), "tiny in half")
    with pytest.raises(
        SmidgenError, match='made for base "tiny" and the weights of base "another"'
    ):
        delta.check_base(fingerprint(Network(seed=5).state_dict()), "another")
