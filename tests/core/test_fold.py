"""Folding: the folded base does what the base does with the delta attached."""

import copy

import pytest
import torch
from torch import nn

from smidgen.core.bypass import Bottleneck, Bypass, Conv, ConvBottleneck, Linear
from smidgen.core.delta import Delta
from smidgen.core.edits import Scale, Shift, Table, Weight
from smidgen.core.fold import IntoLinear, IntoTable, Refused, fold
from smidgen.core.sites import Site
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError
from tests.tiny.deltas import provenance
from tests.tiny.handmade import NUM_ROWS, TARGETS, WIDTH, Network, foldable_edits, inputs
from tests.tiny.weights import lively


def double_network():
    network = Network().double()
    delta = lively(Delta(foldable_edits(network), provenance()).double(), seed=1)
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
    scale, shift = lively(Scale(Site(""), 2), 1), lively(Shift(Site(""), 2), 1)
    folded = fold(Delta({"a": scale}, provenance()), layer.state_dict(), targets)
    torch.testing.assert_close(folded, {"weight": layer.weight * scale.gain[:, None]})
    with pytest.raises(SmidgenError, match=r'"a" does not fold: shift at root.out'):
        fold(Delta({"a": shift}, provenance()), layer.state_dict(), targets)


def test_an_offset_of_a_table_goes_into_its_rows():
    layer = nn.Embedding(4, 3)
    shift = lively(Shift(Site(""), 3), 1)
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


# Bypasses

IN, OUT = Site("", "in", axis=1), Site("", axis=1)
LAYERS = {
    "linear": nn.Linear(6, 4),
    "convolution": nn.Conv2d(6, 4, (3, 2), stride=2, padding=1),
    "grouped": nn.Conv1d(6, 4, 3, groups=2, dilation=2),
    "point": nn.Conv2d(6, 4, 1),  # takes a linear bypass too
}


def bypass_of(layer, *, bias, rows=None, width=4, **arguments):
    size = rows[1] - rows[0] if rows else 4
    conv = None
    if isinstance(layer, nn.Conv1d | nn.Conv2d) and layer is not LAYERS["point"]:
        conv = Conv(
            kernel=layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
        )
    activation = arguments.pop("activation", "identity")
    body = Bottleneck(6, width, size, activation=activation, bias=bias, conv=conv)
    return Bypass(IN, (OUT,), body, scale=-0.5, rows=rows)


def one_layer(rows):
    return Bypass(IN, (OUT,), Linear(6, rows[1] - rows[0] if rows else 4), scale=0.3, rows=rows)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [None, (1, 3)])
def test_a_linear_bypass_of_one_linear_folds_into_it(name, bias, rows):
    if name == "grouped":
        rows = None  # rows of a grouped convolution belong to some of its groups only
    layer = lively(copy.deepcopy(LAYERS[name]).double(), 3)
    edits = {
        "before": Scale(OUT, 4),
        "lora": bypass_of(LAYERS[name], bias=bias, rows=rows),
        "more": bypass_of(LAYERS[name], bias=bias, rows=rows, width=2),
        **({"layer": one_layer(rows)} if name in ("linear", "point") else {}),
        "after": Scale(OUT, 4),
    }
    delta = lively(Delta(edits, provenance()).double(), 1)
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = {"linear": x[..., 0, 0], "grouped": x[..., 0]}.get(name, x)
    with delta.attach(layer):
        expected = layer(x)
    folded = copy.deepcopy(layer)
    folded.load_state_dict(fold(delta, layer.state_dict(), {OUT: IntoLinear("weight", "bias")}))
    torch.testing.assert_close(folded(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (bypass_of(LAYERS["linear"], bias=False, activation="relu"), "is not linear"),
        (
            Bypass(IN, (OUT,), ConvBottleneck(6, 2, 4, groups=1, activation="identity")),
            "not linear",
        ),
        (Bypass(OUT, (OUT,), bypass_of(None, bias=False).body), r"root\.out and adds at root\.out"),
        (Bypass(IN, (OUT, OUT), bypass_of(None, bias=False).body), "not the ends of one linear"),
        (bypass_of(LAYERS["linear"], bias=True), "has a bias and the linear has none"),
        (Tokens(IN, OUT, 2, 4), "what added tokens do"),
        (Bypass(OUT, (IN,), bypass_of(None, bias=False).body), r"no weights .* at root\.in"),
    ],
)
def test_what_is_no_linear_map_of_one_linear_is_refused_by_name(edit, why):
    layer = nn.Linear(6, 4, bias=False)
    with pytest.raises(SmidgenError, match=f'"edit" does not fold.*{why}'):
        fold(
            Delta({"edit": edit}, provenance()),
            layer.state_dict(),
            {OUT: IntoLinear("weight", None)},
        )


def test_a_bypass_does_not_fold_into_a_norm_with_affine_but_a_gain_does():
    norm = lively(nn.LayerNorm(4).double(), 1)
    targets = {OUT: IntoLinear("weight", "bias")}
    gain = lively(Scale(OUT, 4).double(), 2)
    folded = fold(Delta({"gain": gain}, provenance()), norm.state_dict(), targets)
    torch.testing.assert_close(folded["weight"], (norm.weight * gain.gain).detach())
    torch.testing.assert_close(folded["bias"], (norm.bias * gain.gain).detach())
    body = Bottleneck(4, 2, 4, activation="identity", bias=False)
    with pytest.raises(SmidgenError, match=r"weight has shape \(4,\), the delta \(4, 4\)"):
        fold(Delta({"lora": Bypass(IN, (OUT,), body)}, provenance()), norm.state_dict(), targets)


def test_a_host_can_say_why_a_site_does_not_fold():
    delta = Delta({"norm.weight": Scale(OUT, 4)}, provenance())
    with pytest.raises(
        SmidgenError, match=r'"norm\.weight" does not fold: all blocks share it; att'
    ):
        fold(delta, {}, {OUT: Refused("all blocks share it")})


@pytest.mark.parametrize(
    "state",
    [
        {"weight": torch.zeros(24, 1, dtype=torch.uint8)},  # bitsandbytes, 4 bit
        {"weight": torch.zeros(4, 6, dtype=torch.int8)},  # bitsandbytes, 8 bit
        {"weight._data": torch.zeros(4, 6, dtype=torch.int8), "weight._scale": torch.ones(4, 1)},
        {"weight": torch.zeros(4, 6).as_subclass(type("Packed", (torch.Tensor,), {}))},  # torchao
    ],
)
def test_a_base_in_4_or_8_bit_is_refused_by_the_name_of_the_tensor(state):
    delta = Delta({"gain": Scale(OUT, 4)}, provenance())
    with pytest.raises(SmidgenError, match='"weight" is kept in 4 or 8 bit'):
        fold(delta, state, {OUT: IntoLinear("weight", None)})


def test_a_fold_that_leaves_the_range_of_the_base_is_refused_by_name():
    network = Network().half()
    huge = lively(Delta(foldable_edits(network), provenance()), seed=1)
    with torch.no_grad():
        for parameter in huge.parameters():
            parameter.mul_(1e6)
    with pytest.raises(SmidgenError, match=r"not finite .NaN or infinity.: \w+.*; fold into"):
        fold(huge, network.state_dict(), TARGETS)
