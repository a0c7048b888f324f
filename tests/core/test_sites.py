"""Sites: inputs and outputs are found however a module is called; what is missing is named."""

import pytest
import torch
from torch import nn

from smidgen.core.sites import Site, bind, check_attachable, compiled_module, num_channels
from smidgen.errors import SmidgenError


class Kinds(nn.Module):
    """Every kind of argument."""

    def forward(self, first, second=None, *, third=None, **rest):
        return first, second, third, rest.get("fourth")


class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


ONE = torch.ones(2)


def double(value):
    return value * 2


@pytest.mark.parametrize(
    ("argument", "index"), [(None, 0), ("first", 0), ("second", 1), ("third", 2), ("fourth", 3)]
)
@pytest.mark.parametrize("by_position", [True, False])
def test_an_input_is_found_by_position_and_by_keyword(argument, index, by_position):
    network = Holder(Kinds())
    bind(network, Site("inner", "in", argument=argument), double)
    if by_position:
        outputs = network(ONE, ONE, third=ONE, fourth=ONE)
    else:
        outputs = network(first=ONE, second=ONE, third=ONE, fourth=ONE)
    assert [float(value[0]) for value in outputs] == [2.0 if i == index else 1.0 for i in range(4)]


def test_an_input_left_to_its_default_or_none_is_left_alone():
    network = Kinds()
    bind(network, Site("", "in", argument="second"), double)
    assert network(ONE)[1] is None
    assert network(ONE, None)[1] is None


def test_the_first_input_of_a_forward_without_names_is_the_first_position():
    network = Holder(nn.Identity())
    bind(network, Site("", "in"), double)
    assert torch.equal(network(ONE), 2 * ONE)


def test_an_unknown_argument_is_refused_with_the_known_ones():
    with pytest.raises(SmidgenError, match=r"l\.in\[x\]: Linear.forward takes only input"):
        bind(nn.ModuleDict({"l": nn.Linear(2, 2)}), Site("l", "in", argument="x"), double)


def test_an_unknown_module_is_refused():
    with pytest.raises(SmidgenError, match=r'Linear has no module "blocks.0"'):
        bind(nn.Linear(2, 2), Site("blocks.0"), double)


@pytest.mark.parametrize("index", [0, -3])
def test_an_output_is_chosen_from_a_tuple(index):
    network = Kinds()
    bind(network, Site("", index=index), double)
    first, second, third, _ = network(ONE, ONE, third=ONE)
    assert float(first[0]) == (2.0 if index == 0 else 1.0)
    assert float(second[0]) == (2.0 if index == -3 else 1.0)
    assert float(third[0]) == 1.0


def test_an_output_that_is_none_is_left_alone():
    network = Kinds()
    bind(network, Site("", index=1), double)
    assert network(ONE)[1] is None


@pytest.mark.parametrize("by_keyword", [True, False])
@pytest.mark.parametrize("kind", [tuple, list])
def test_an_input_is_chosen_from_a_tuple(by_keyword, kind):
    class Pair(nn.Module):
        def forward(self, x, pair=None):
            return x, pair

    network, pair = Pair(), kind((ONE, 3 * ONE))
    bind(network, Site("", "in", argument="pair", index=1), double)
    _, found = network(ONE, pair=pair) if by_keyword else network(ONE, pair)
    assert type(found) is kind
    assert torch.equal(found[0], ONE)
    assert torch.equal(found[1], 6 * ONE)
    assert network(ONE, None)[1] is None
    with pytest.raises(SmidgenError, match="the argument has no entry number 1"):
        network(ONE, (ONE,))


def test_a_tuple_without_an_index_and_an_index_without_a_place_are_refused():
    network = Kinds()
    handle = bind(network, Site(""), double)
    with pytest.raises(SmidgenError, match="carries a tuple, not a tensor"):
        network(ONE)
    handle.remove()
    bind(network, Site("", index=4), double)
    with pytest.raises(SmidgenError, match="no output number 4"):
        network(ONE)


def test_functions_at_one_site_run_in_the_order_of_binding_and_remove_ends_them():
    network = nn.Identity()
    handles = [
        bind(network, Site("", end), f) for end in ("in", "out") for f in (double, torch.exp)
    ]
    assert torch.equal(network(ONE), torch.exp(2 * torch.exp(2 * ONE)))
    for handle in handles:
        handle.remove()
    assert network(ONE) is ONE
    assert not network._forward_hooks
    assert not network._forward_pre_hooks


def test_a_site_of_one_end_cannot_have_the_place_of_the_other():
    with pytest.raises(ValueError, match="argument"):
        Site("a", "in", index=1)
    with pytest.raises(ValueError, match="index"):
        Site("a", "out", argument="x")


@pytest.mark.parametrize(
    ("site", "spec"),
    [
        (Site("a.b"), {"module": "a.b"}),
        (Site("", "in", argument="c"), {"module": "", "end": "in", "argument": "c"}),
        (Site("a", index=0, axis=1), {"module": "a", "index": 0, "axis": 1}),
        (Site("a", "in", "b", index=1), {"module": "a", "end": "in", "argument": "b", "index": 1}),
    ],
)
def test_a_site_is_rebuilt_from_its_spec(site, spec):
    assert site.spec() == spec
    assert Site(**spec) == site


class QuantisedLinear(nn.Module):
    """As other packages write theirs: no `nn.Linear`, but with its attributes."""

    def __init__(self, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features


@pytest.mark.parametrize(
    ("module", "channels"),
    [
        (nn.Linear(2, 3), (2, 3)),
        (nn.Conv2d(2, 3, 1), (2, 3)),
        (nn.Embedding(4, 3), (None, 3)),
        (nn.LayerNorm([4, 3]), (3, 3)),
        (nn.GroupNorm(1, 3), (3, 3)),
        (nn.RMSNorm(3), (None, None)),
        (QuantisedLinear(2, 3), (2, 3)),
        (nn.Sequential(nn.Linear(2, 3)), (None, None)),
    ],
)
def test_the_channels_of_layers_are_known_without_a_call(module, channels):
    assert (num_channels(module, "in"), num_channels(module, "out")) == channels


def test_compiled_models_are_refused_by_the_name_of_the_module():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    check_attachable(network)
    assert compiled_module(network) is None
    with pytest.raises(SmidgenError, match="OptimizedModule is compiled"):
        check_attachable(torch.compile(network, backend="eager"))
    network[1][0].compile(backend="eager")
    with pytest.raises(SmidgenError, match=r'module "1.0" is compiled.*before torch.compile'):
        check_attachable(network)
    wrapped = nn.Sequential(nn.Linear(2, 2), torch.compile(nn.Linear(2, 2), backend="eager"))
    with pytest.raises(SmidgenError, match='module "1" is compiled'):
        check_attachable(wrapped)
