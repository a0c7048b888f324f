"""Folding: the folded base does what the base does with the delta attached."""

import pytest
import torch
from torch import nn

from smidgen.core.delta import Delta
from smidgen.core.edits import Scale, Shift, Table, Weight
from smidgen.core.fold import IntoLinear, IntoTable, fold
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from tests.core.networks import (
    NUM_ROWS,
    TARGETS,
    WIDTH,
    Network,
    foldable_edits,
    inputs,
    provenance,
    randomise,
)


def double_network():
    network = Network().double()
    delta = randomise(Delta(foldable_edits(network), provenance()).double(), seed=1)
    x, y = inputs()
    return network, delta, x.double(), y


def folded_network(state):
    network = Network().double()
    network.table = nn.Embedding(*state["table.weight"].shape).double()
    network.load_state_dict(state)
    return network


def test_folded_equals_attached():
    network, delta, x, y = double_network()
    with delta.attach(network):
        expected = network(x, y)
    folded = folded_network(fold(delta, network.state_dict(), TARGETS))
    torch.testing.assert_close(folded(x, y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(foldable_edits(Network())))
def test_each_edit_folds_alone(name):
    network, delta, x, y = double_network()
    y = y % network.table.num_embeddings
    alone = Delta({name: delta.edits[name]}, provenance())
    with alone.attach(network):
        expected = network(x, y)
    assert not torch.allclose(network(x, y), expected)
    folded = folded_network(fold(alone, network.state_dict(), TARGETS))
    torch.testing.assert_close(folded(x, y), expected, rtol=1e-12, atol=1e-12)


def test_folding_does_not_depend_on_the_order_of_edits_at_different_sites():
    network, delta, _, _ = double_network()
    one = fold(delta, network.state_dict(), TARGETS)
    by_site = sorted(delta.edits.items(), key=lambda entry: str(entry[1].sites))
    two = fold(Delta(dict(by_site), provenance()), network.state_dict(), TARGETS)
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_folding_writes_a_new_state_dict_and_leaves_the_base():
    network, delta, _, _ = double_network()
    state = network.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    folded = fold(delta, state, TARGETS)
    assert list(folded) == list(state)
    torch.testing.assert_close(dict(state), before, rtol=0, atol=0)
    assert folded["table.weight"].shape == (NUM_ROWS, WIDTH)
    assert folded["blocks.1.mixer.inner.weight"] is state["blocks.1.mixer.inner.weight"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_folding_rounds_once_to_the_precision_of_the_base(dtype):
    network, delta, _, _ = double_network()
    state = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    exact = fold(delta, {name: tensor.double() for name, tensor in state.items()}, TARGETS)
    for name, tensor in fold(delta, state, TARGETS).items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, exact[name].to(dtype))


def test_a_linear_without_bias_takes_a_gain_and_no_offset():
    layer = nn.Linear(3, 2, bias=False)
    targets = {Site(""): IntoLinear("weight", None)}
    scale, shift = randomise(Scale(Site(""), 2), 1), randomise(Shift(Site(""), 2), 1)
    folded = fold(Delta({"a": scale}, provenance()), layer.state_dict(), targets)
    torch.testing.assert_close(folded, {"weight": layer.weight * scale.gain[:, None]})
    with pytest.raises(SmidgenError, match=r'"a" does not fold: shift at root.out'):
        fold(Delta({"a": shift}, provenance()), layer.state_dict(), targets)


def test_an_offset_of_a_table_goes_into_its_rows():
    layer = nn.Embedding(4, 3)
    shift = randomise(Shift(Site(""), 3), 1)
    folded = fold(
        Delta({"a": shift}, provenance()), layer.state_dict(), {Site(""): IntoTable("weight")}
    )
    torch.testing.assert_close(folded, {"weight": layer.weight + shift.offset})


def test_a_site_without_a_target_is_refused_by_name():
    network = Network()
    edit = Scale(Site("blocks.0", "in", argument="c"), WIDTH)
    with pytest.raises(SmidgenError, match=r'"c.gamma" does not fold.*at blocks\.0\.in\[c\]'):
        fold(Delta({"c.gamma": edit}, provenance()), network.state_dict(), TARGETS)


def test_weights_that_lack_a_tensor_or_have_another_shape_are_refused():
    network, delta, _, _ = double_network()
    state = network.state_dict()
    del state["stem.bias"]
    with pytest.raises(SmidgenError, match=r'the weights have no "stem.bias"'):
        fold(delta, state, TARGETS)
    other = Delta({"w": Weight("head", {"bias": torch.zeros(7)})}, provenance())
    with pytest.raises(SmidgenError, match=r"head.bias has shape \(3,\)"):
        fold(other, network.state_dict(), TARGETS)


def test_a_table_does_not_fold_into_a_linear():
    rows = torch.zeros(4, WIDTH)
    edit = Table(Site("table", "in"), Site("table"), 5, rows)
    targets = {Site("table"): TARGETS[Site("head")]}
    with pytest.raises(SmidgenError, match=r"does not fold: table at table\.in, table\.out"):
        fold(Delta({"t": edit}, provenance()), Network().state_dict(), targets)
