"""Strength, interpolation and sums of deltas, by what they do; and what has none of them."""

import pytest
import torch
from torch import nn

from smidgen.core.arithmetic import combine, interpolate, scaled
from smidgen.core.bypass import Bottleneck, Bypass, Conv, ConvBottleneck, Linear
from smidgen.core.delta import Delta
from smidgen.core.edits import Scale, Shift, Table, Weight
from smidgen.core.fingerprint import fingerprint
from smidgen.core.sites import Site
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError
from tests.tiny.deltas import provenance
from tests.tiny.handmade import NUM_OLD_ROWS, WIDTH, Network, inputs
from tests.tiny.weights import lively

ORIGIN = (3, 0, 4)
X, Y = inputs(3)
X, Y = X.double(), torch.tensor([0, 1, 2])
OLD_Y = torch.tensor(ORIGIN)
POINT = Conv(kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))


BASE = fingerprint(Network().state_dict())
OTHER_BASE = {"base": "big", "fingerprint": fingerprint(Network(7).state_dict())}


def table(origin=ORIGIN):
    rows = torch.ones(len(origin), WIDTH)
    return Table(Site("table", "in"), Site("table"), NUM_OLD_ROWS, rows, origin=origin)


def adapter(width=2, scale=1.0, activation="relu"):
    body = Bottleneck(WIDTH, width, WIDTH, activation=activation, bias=True)
    return Bypass(Site("blocks.1.mixer", "in", "h"), (Site("blocks.1.mixer"),), body, scale=scale)


def lora(width=2, scale=1.0, groups=1):
    conv = Conv(**vars(POINT) | {"groups": groups})
    body = Bottleneck(3, width, WIDTH, activation="identity", bias=False, conv=conv)
    return Bypass(Site("stem", "in", axis=1), (Site("stem", axis=1),), body, scale=scale)


def layer(width=2, scale=1.0):
    return Bypass(
        Site("blocks.1.mixer", "in", "h"),
        (Site("blocks.1.mixer"),),
        Linear(WIDTH, WIDTH),
        scale=scale,
    )


def residual():
    body = ConvBottleneck(3, 2, WIDTH, groups=1, activation="silu")
    return Bypass(Site("stem", "in", axis=1), (Site("stem", axis=1),), body)


def edits():
    return {
        "label_table": table(),
        "stem.gain": Scale(Site("stem", axis=1), WIDTH),
        "stem.lora": lora(),
        "blocks.0.modulation.bias": Shift(Site("blocks.0.modulation"), 2 * WIDTH),
        "blocks.1.adapter": adapter(),
    }


def delta(named=None, seed=1, **facts):
    facts = {"classes": ("a", "b"), "fingerprint": BASE} | facts
    return lively(Delta(named or edits(), provenance(**facts)).double(), seed)


def run(attached, model, labels=Y, strength=1.0):
    with torch.no_grad(), attached.attach(model, strength):
        return model(X, labels)


@pytest.fixture
def model():
    return Network().double()


@pytest.fixture
def base(model):
    return model(X, OLD_Y)


def test_strength_nought_is_the_base_bit_for_bit(model, base):
    assert torch.equal(run(delta(), model, strength=0.0), base)
    residuals = delta({"label_table": table(), "stem.adapter": residual()})
    assert torch.equal(run(residuals, model, strength=0.0), base)


def test_strength_one_is_the_delta_itself():
    one = delta()
    assert scaled(one, 1.0) is one
    model = Network().double()
    with one.attach(model, 1.0) as attachment:
        assert attachment.delta is one


@pytest.mark.parametrize("s", [-1.0, 0.25, 2.0])
def test_each_kind_has_its_strength(model, s):
    one = delta()
    half = scaled(one, s, base_rows=model.table.weight)
    a, b = one.edits, half.edits
    base_rows = model.table.weight[list(ORIGIN)]
    expected = base_rows + s * (a["label_table"].rows - base_rows)
    torch.testing.assert_close(b["label_table"].rows, nn.Parameter(expected))
    torch.testing.assert_close(b["stem.gain"].gain, nn.Parameter(1 + s * (a["stem.gain"].gain - 1)))
    name = "blocks.0.modulation.bias"
    torch.testing.assert_close(b[name].offset, nn.Parameter(s * a[name].offset))
    h = X.mean((2, 3)).repeat(1, 3)[:, :WIDTH]
    for name, value, axis in (("stem.lora", X, 1), ("blocks.1.adapter", h, -1)):
        was, now = (edits[name].scale * edits[name].body(value, axis) for edits in (a, b))
        torch.testing.assert_close(now, s * was)
    torch.testing.assert_close(run(half, model), run(one, model, strength=s))


def test_a_strength_leaves_the_delta_as_it_is(model):
    one = delta()
    before = {name: value.clone() for name, value in one.state_dict().items()}
    run(one, model, strength=0.5)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())
    assert scaled(one, 0.5, model.table.weight).provenance.training["strength"] == 0.5


def test_a_strength_is_rounded_once_to_the_precision_of_the_delta():
    one = lively(Delta({"a": Scale(Site("head"), 3)}, provenance()), 1).half()
    gain = 1 + 0.3 * (one.edits["a"].gain.double() - 1)
    assert torch.equal(scaled(one, 0.3).edits["a"].gain, gain.half())


def test_interpolation_has_its_ends_and_goes_straight_between_them(model):
    one, two = delta(seed=1), delta(seed=2)
    assert interpolate(one, two, 0.0) is one
    assert interpolate(one, two, 1.0) is two
    between = interpolate(one, two, 0.25)
    for name in ("label_table", "stem.gain", "blocks.0.modulation.bias"):
        values = [next(iter(d.edits[name].parameters())) for d in (one, two, between)]
        torch.testing.assert_close(0.75 * values[0] + 0.25 * values[1], values[2])
    with between.attach(model):
        model(X, Y)


def test_tables_of_other_classes_can_be_interpolated():
    one, two = (delta({"label_table": table((None,) * 3)}, seed) for seed in (1, 2))
    rows = interpolate(one, two, 0.5).edits["label_table"].rows
    mean = (one.edits["label_table"].rows + two.edits["label_table"].rows) / 2
    torch.testing.assert_close(rows, nn.Parameter(mean.detach()))


@pytest.mark.parametrize("make", [adapter, lora, layer])
def test_a_sum_of_bypasses_adds_what_they_do(make):
    parts = [make(2, 0.5), make(3, 2.0), make(1, 0.5)]
    each = [delta({"bypass": part}, seed) for seed, part in enumerate(parts)]
    total = combine(each, [0.7, -1.5, 2.0]).edits["bypass"]
    assert make is layer or total.body.width == 6
    h = X if make is lora else X.mean((2, 3)).repeat(1, 3)[:, :WIDTH]
    axis = 1 if make is lora else -1
    outputs = [part.scale * part.body(h, axis) for part in parts]
    expected = 0.7 * outputs[0] - 1.5 * outputs[1] + 2.0 * outputs[2]
    torch.testing.assert_close(total.scale * total.body(h, axis), expected)


def test_a_sum_of_bypasses_of_a_grouped_convolution_adds_group_by_group():
    conv = Conv(kernel=(3,), stride=(1,), padding=(1,), dilation=(1,), groups=2)
    site = Site("", "in", axis=1), (Site("", axis=1),)
    each = [
        delta({"a": Bypass(*site, Bottleneck(4, 4, 6, activation="relu", bias=True, conv=conv))}, s)
        for s in (1, 2)
    ]
    h = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = combine(each, [1.0, -0.5]).edits["a"].body(h, 1)
    one, two = (d.edits["a"].body(h, 1) for d in each)
    torch.testing.assert_close(total, one - 0.5 * two)


def test_a_sum_of_equal_edits_follows_the_definitions(model):
    one, two = delta(seed=1), delta(seed=2)
    total = combine([one, two], [0.5, 2.0], base_rows=model.table.weight)
    first, second = one.edits["stem.gain"].gain, two.edits["stem.gain"].gain
    expected = nn.Parameter(1 + 0.5 * (first - 1) + 2 * (second - 1))
    torch.testing.assert_close(total.edits["stem.gain"].gain, expected)
    own = model.table.weight[list(ORIGIN)]
    rows = [d.edits["label_table"].rows for d in (one, two)]
    expected = nn.Parameter(own + 0.5 * (rows[0] - own) + 2 * (rows[1] - own))
    torch.testing.assert_close(total.edits["label_table"].rows, expected)
    assert [part["weight"] for part in total.provenance.training["sum_of"]] == [0.5, 2.0]


def test_a_sum_saves_and_loads(model, tmp_path):
    total = combine([delta(seed=1), delta(seed=2)], [1.0, 1.0], model.table.weight)
    total.save(tmp_path / "sum.safetensors")
    loaded = Delta.load(tmp_path / "sum.safetensors")
    assert torch.equal(run(loaded, model), run(total, model))


# What has no strength and no sum


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (Tokens(Site("head", "in"), Site("head"), 2, WIDTH), '"edit" is added tokens'),
        (Weight("head", {"bias": torch.zeros(3)}), '"edit" is a weight, a copy'),
        (table((0, None, 4)), 'a row for "b", a class that the base lacks'),
        (table(()), "needs the 5 rows of the base's table"),
    ],
)
def test_what_has_no_strength_is_refused_with_the_reason(edit, why):
    if isinstance(edit, Table) and not len(edit.rows):
        edit = table()
    one = delta({"edit": edit})
    with pytest.raises(SmidgenError, match=why):
        scaled(one, 0.5)
    with pytest.raises(SmidgenError, match=why):
        combine([one, delta({"edit": edit})], [1.0, 1.0])


def test_adapters_of_residual_blocks_have_a_strength_but_no_sum():
    each = [delta({"edit": residual()}, seed) for seed in (1, 2)]
    with pytest.raises(SmidgenError, match='"edit" has a norm of its own'):
        combine(each, [0.5, 0.5])
    assert combine(each, [0.0, 0.5]).edits["edit"].scale == 0.5


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"facts": {"method": "lora"}}, "delta 2 is of lora, the first of none"),
        ({"facts": {"classes": ("a", "c")}}, "other classes"),
        ({"facts": OTHER_BASE}, 'for base "big"'),
        ({"named": {"stem.lora": lora()}}, 'other edits than the first: "blocks.0.mod'),
        (
            {"named": edits() | {"blocks.1.adapter": adapter(activation="silu")}},
            'differs from the first at edit "blocks.1.adapter"',
        ),
    ],
)
def test_unlike_deltas_are_refused_with_what_differs(other, why):
    with pytest.raises(SmidgenError, match=why):
        combine([delta(), delta(other.get("named"), **other.get("facts", {}))], [1.0, 1.0])


def test_a_weight_for_each_delta_is_needed():
    with pytest.raises(SmidgenError, match="1 deltas and 2 weights"):
        combine([delta()], [1.0, 2.0])


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(weight):
    one = delta({"edit": Shift(Site("head"), 3)})
    for attempt in (
        lambda: scaled(one, weight),
        lambda: combine([one, one], [1.0, weight]),
        lambda: interpolate(one, one, weight),
    ):
        with pytest.raises(SmidgenError, match="give finite numbers"):
            attempt()
