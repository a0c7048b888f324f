"""Edits: the arithmetic of each kind, its checks, and its rebuilding from a spec."""

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from smidgen.core.bypass import Bottleneck, Bypass
from smidgen.core.edits import EDITS, Scale, Shift, Table, Weight, edit_from_spec, plant
from smidgen.core.sites import Site
from smidgen.core.tokens import Tokens
from smidgen.core.word import Word
from smidgen.errors import SmidgenError
from tests.tiny.weights import lively

SHAPES = [((2, 3), -1), ((2, 5, 3), -1), ((2, 3, 5, 4), 1), ((2, 3, 5, 4), -3), ((3, 2), 0)]


class Operations(TorchDispatchMode):
    """Lists the operations that reach the device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function).removesuffix(".default").removesuffix(".Tensor"))
        return function(*args, **(kwargs or {}))


def attached(edit, network):
    edit.check(network)
    return list(edit.attach(network))


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_shift_adds_and_scale_multiplies_along_the_axis(shape, axis):
    shift = lively(Shift(Site("", axis=axis), 3), seed=1)
    scale = lively(Scale(Site("", axis=axis), 3), seed=2)
    y = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    network = nn.Identity()
    attached(shift, network)
    attached(scale, network)
    # channels last, where broadcasting is the definition
    expected = ((y.movedim(axis, -1) + shift.offset) * scale.gain).movedim(-1, axis)
    assert torch.equal(network(y), expected)


def test_a_fresh_shift_and_scale_change_nothing():
    network, y = nn.Identity(), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    attached(Shift(Site(""), 3), network)
    attached(Scale(Site(""), 3), network)
    assert torch.equal(network(y), y)


@pytest.mark.parametrize("kind", [Shift, Scale])
def test_float32_weights_keep_the_precision_of_a_bfloat16_base(kind):
    edit = lively(kind(Site(""), 3), seed=1)
    y = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    vector = next(edit.parameters())
    network = nn.Identity()
    attached(edit, network)
    rounded = vector.bfloat16()
    assert network(y).dtype == torch.bfloat16
    assert torch.equal(network(y), y + rounded if kind is Shift else y * rounded)
    network(y).sum().backward()
    assert vector.grad.dtype == torch.float32


@pytest.mark.parametrize(("kind", "operation"), [(Shift, "aten.add"), (Scale, "aten.mul")])
@pytest.mark.parametrize("axis", [-1, 1])
def test_a_vector_costs_one_operation(kind, operation, axis):
    network, y = nn.Identity(), torch.randn(2, 3, 3)
    attached(kind(Site("", axis=axis), 3), network)
    with torch.no_grad(), Operations() as operations:
        network(y)
    assert [name for name in operations.names if name != "aten.view"] == [operation]


def table(num_rows=9):
    rows = torch.randn(num_rows, 4, generator=torch.Generator().manual_seed(5))
    return Table(Site("0", "in"), Site("0"), 5, rows)


@pytest.mark.parametrize("shape", [(9,), (3, 3)])
def test_a_table_replaces_the_rows_for_more_classes_than_the_base_has(shape):
    edit, network = table(), nn.Sequential(nn.Embedding(5, 4))
    attached(edit, network)
    ids = torch.arange(9).reshape(shape)
    assert torch.equal(network(ids), edit.rows[ids])
    assert torch.equal(network(ids.int()), edit.rows[ids])
    assert edit.ids is None, "ids are kept from one end to the other and no longer"


def test_a_table_gives_the_precision_of_the_base():
    edit, network = table(), nn.Sequential(nn.Embedding(5, 4).bfloat16())
    attached(edit, network)
    output = network(torch.tensor([7]))
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, edit.rows[7:8].bfloat16())


def test_a_table_whose_input_was_never_seen_is_refused():
    with pytest.raises(SmidgenError, match="the ids are unknown"):
        table().write(torch.zeros(1, 4))


def test_a_table_for_another_number_of_old_rows_or_channels_is_refused():
    with pytest.raises(SmidgenError, match="0 has 6 rows where the delta expects 5"):
        table().check(nn.Sequential(nn.Embedding(6, 4)))
    with pytest.raises(SmidgenError, match=r"0\.out has 3 channels, the delta expects 4"):
        table().check(nn.Sequential(nn.Embedding(5, 3)))


def test_a_table_says_which_rows_of_the_base_its_rows_stand_for():
    rows, sites = torch.zeros(3, 4), (Site("0", "in"), Site("0"))
    assert Table(*sites, 5, rows).origin == (None, None, None)
    assert "origin" not in Table(*sites, 5, rows).spec()  # as in files of before there were any
    edit = Table(*sites, 5, rows, origin=[4, None, 0])
    assert edit_from_spec(json.loads(json.dumps(edit.spec()))).origin == (4, None, 0)
    with pytest.raises(ValueError, match="2 origins of 3 rows"):
        Table(*sites, 5, rows, origin=[4, None])


def two_layers():
    return nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)))


@pytest.mark.parametrize(
    ("module", "names"),
    [("1.0", ["weight"]), ("1", ["0.weight", "0.bias"]), ("", ["0.bias", "1.0.weight"])],
)
def test_a_weight_runs_the_module_with_its_copies_and_gives_back_the_very_same_objects(
    module, names
):
    network, x = two_layers(), torch.ones(1, 3)
    before = dict(network.named_parameters())
    target = network.get_submodule(module)
    edit = Weight(module, {name: target.get_parameter(name) for name in names})
    handles = attached(edit, network)
    assert torch.equal(network(x), two_layers_by_hand(before, x)), "copies start as the base's"
    lively(edit, seed=1)
    changed = before | edit.replaced()
    assert set(edit.replaced()) == {f"{module}.{name}".strip(".") for name in names}
    assert torch.equal(network(x), two_layers_by_hand(changed, x))
    for handle in handles:
        handle.remove()
    after = dict(network.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def two_layers_by_hand(p, x):
    return (x @ p["0.weight"].T + p["0.bias"]) @ p["1.0.weight"].T + p["1.0.bias"]


def test_a_weight_that_does_not_fit_is_refused():
    layer = two_layers()[1][0]
    with pytest.raises(SmidgenError, match=r'Sequential has no parameter "0.gain"'):
        Weight("0", {"gain": layer.weight}).check(two_layers())
    with pytest.raises(SmidgenError, match=r'Sequential has no parameter "7.weight"'):
        Weight("7", {"weight": layer.weight}).check(two_layers())
    with pytest.raises(SmidgenError, match=r"0.weight has shape \(3, 3\), in the delta \(2, 3\)"):
        Weight("0", {"weight": layer.weight}).check(two_layers())
    with pytest.raises(SmidgenError, match=r'delta.to\("cpu", torch.bfloat16\)'):
        Weight("1.0", {"weight": layer.weight}).check(two_layers().bfloat16())


def test_no_copy_takes_the_place_of_a_weight_in_4_or_8_bit():
    network = two_layers()
    network[0].weight = nn.Parameter(torch.zeros(9, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(SmidgenError, match=r"0\.weight is kept in 4 or 8 bit"):
        Weight("0", {"weight": torch.zeros(3, 3)}).check(network)


def test_the_sizes_of_layers_are_checked_before_anything_runs():
    for edit in (Shift(Site("0"), 4), Scale(Site("0", "in"), 4), Shift(Site("1.0"), 4)):
        with pytest.raises(SmidgenError, match="channels, the delta expects 4"):
            edit.check(two_layers())


EXAMPLES = [
    Shift(Site("a.b", axis=1), 3),
    Scale(Site("", "in", argument="c"), 3),
    Bypass(Site("a"), (Site("b"),), Bottleneck(3, 2, 4, activation="relu", bias=True)),
    Tokens(Site("a", "in"), Site("a"), 2, 3),
    table(),
    Weight("a", {"w": torch.zeros(2, 3), "b.c": torch.zeros(1)}),
    Word(Site("a", "in"), Site("a"), "<owl>", 9, 9, torch.zeros(2, 3)),
]


@pytest.mark.parametrize("edit", EXAMPLES, ids=lambda edit: edit.kind)
def test_an_edit_is_rebuilt_from_its_spec_through_json(edit):
    rebuilt = edit_from_spec(json.loads(json.dumps(edit.spec())))
    assert type(rebuilt) is type(edit)
    assert rebuilt.spec() == edit.spec()
    assert rebuilt.sites == edit.sites
    assert {n: t.shape for n, t in rebuilt.tensors().items()} == {
        n: t.shape for n, t in edit.tensors().items()
    }


def test_every_kind_is_in_the_table_and_has_an_example():
    assert {edit.kind for edit in EXAMPLES} == set(EDITS)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(
        SmidgenError, match=r'"wavelet" are unknown.*shift, scale, bypass, tokens, table, weight'
    ):
        edit_from_spec({"kind": "wavelet"})


def test_planting_gives_the_path_as_the_name_and_refuses_a_taken_one():
    root = nn.Module()
    plant(root, "a.b.c", nn.Parameter(torch.zeros(1)))
    plant(root, "a.d", nn.Linear(1, 1))
    assert list(root.state_dict()) == ["a.b.c", "a.d.weight", "a.d.bias"]
    for taken in ("a.b.c", "a.b.c.e", "a.b", "a.d.weight", "a.d.e", "forward", "forward.e"):
        with pytest.raises(ValueError, match="taken"):
            plant(root, taken, nn.Parameter(torch.zeros(1)))


def test_the_two_sites_of_a_table_are_its_ends():
    ends = Site("table", "in"), Site("table")
    for wrong in (ends[::-1], (ends[1], ends[1]), (ends[0], Site("other"))):
        with pytest.raises(ValueError, match="are not the two ends of one table"):
            Table(*wrong, 5, torch.zeros(3, 2))
