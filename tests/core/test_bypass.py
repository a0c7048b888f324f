"""Bypass: its arithmetic written out, what it keeps between its sites, its start and its checks."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from smidgen.core.bypass import Bottleneck, Bypass, Conv, ConvBottleneck, Linear
from smidgen.core.delta import Delta
from smidgen.core.edits import edit_from_spec
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from tests.tiny.deltas import provenance
from tests.tiny.weights import lively

ACTIVATIONS = {
    "relu": lambda z: z.clamp(min=0),
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "gelu": lambda z: z * (1 + torch.erf(z / 2**0.5)) / 2,
    "identity": lambda z: z,
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers():
    return lively(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double(), seed=1)


def bypass(read, writes, body=None, **arguments):
    body = body or Bottleneck(3, 2, 4, activation="relu", bias=True)
    return lively(Bypass(read, writes, body, **arguments), seed=2).double()


def attach(edit, network):
    return Delta({"edit": edit}, provenance()).attach(network)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_bottleneck_reads_at_one_site_and_adds_at_another(activation, bias):
    network, x = layers(), normal(5, 3)
    body = Bottleneck(3, 2, 4, activation=activation, bias=bias)
    edit = bypass(Site("0", "in"), (Site("2"),), body, scale=0.5)
    p = dict(edit.named_parameters())
    assert list(p) == [
        f"{end}.{t}" for end in ("down", "up") for t in ("weight", "bias")[: 1 + bias]
    ]
    z = x @ p["down.weight"].T + p.get("down.bias", 0)
    z = ACTIVATIONS[activation](z) @ p["up.weight"].T + p.get("up.bias", 0)
    expected = network(x) + 0.5 * z
    with attach(edit, network):
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("axis", [1, -3])
def test_a_bottleneck_works_along_any_axis_of_channels(axis):
    edit = bypass(Site("", "in", axis=axis), (Site("", axis=axis),))
    network, x = nn.Conv2d(3, 4, 1).double(), normal(2, 3, 5, 4)
    p = dict(edit.named_parameters())
    z = torch.einsum("wc,bcij->bwij", p["down.weight"], x) + p["down.bias"].view(-1, 1, 1)
    z = torch.einsum("dw,bwij->bdij", p["up.weight"], z.clamp(min=0)) + p["up.bias"].view(-1, 1, 1)
    expected = network(x) + z
    with attach(edit, network):
        torch.testing.assert_close(network(x), expected)


def test_rows_leave_the_other_channels_alone():
    network, x = layers(), normal(2, 5, 3)
    body = Bottleneck(3, 2, 2, activation="identity", bias=False)
    edit = bypass(Site("0", "in"), (Site("2"),), body, rows=(1, 3))
    before = network(x)
    with attach(edit, network):
        after = network(x)
    assert torch.equal(after[..., [0, 3]], before[..., [0, 3]])
    expected = before[..., 1:3] + x @ edit.body.down.weight.T @ edit.body.up.weight.T
    torch.testing.assert_close(after[..., 1:3], expected)


def test_a_term_is_added_at_every_write():
    network, x = (
        nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)).double(),
        normal(2, 3),
    )
    body = Bottleneck(3, 2, 3, activation="relu", bias=True)
    edit = bypass(Site("0", "in"), (Site("1", "in"), Site("2")), body)
    with torch.no_grad():
        term = edit.body(x)
        expected = network[2](network[1](network[0](x) + term)) + term
        with attach(edit, network):
            torch.testing.assert_close(network(x), expected)


def test_an_image_is_added_to_tokens_row_by_row():
    def as_image(x):  # (B, N, C) -> (B, C, 2, 3)
        return x.reshape(5, 2, 3, 3).permute(0, 3, 1, 2)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)

        def forward(self, x):
            z = self.conv(as_image(x))
            return self.head(torch.stack([z[:, :, i, j] for i in (0, 1) for j in (0, 1, 2)], 1))

    network, x = lively(Network().double(), seed=1), normal(5, 6, 3)
    edit = bypass(Site("conv", "in", axis=1), (Site("head"),))
    p = dict(edit.named_parameters())
    z = (x @ p["down.weight"].T + p["down.bias"]).clamp(min=0)
    expected = network(x) + z @ p["up.weight"].T + p["up.bias"]
    with attach(edit, network):
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("width", [3, 2])
def test_tokens_are_added_to_an_image_row_by_row(width):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.Identity(), nn.Conv2d(3, 4, 1)

        def forward(self, x):  # (B, N, C) -> (B, C, 2, width), the last tokens left out
            z = self.norm(x)[:, : 2 * width]
            return self.conv(z.reshape(5, 2, width, 3).permute(0, 3, 1, 2))

    network, x = lively(Network().double(), seed=1), normal(5, 6, 3)
    edit = bypass(Site("norm", "in"), (Site("conv", axis=1),))
    if width == 2:  # 6 tokens beside 4 pixels
        with attach(edit, network), pytest.raises(SmidgenError, match=r"\(5, 4, 2, 2\) at conv"):
            network(x)
        return
    p = dict(edit.named_parameters())
    z = (x @ p["down.weight"].T + p["down.bias"]).clamp(min=0)
    z = z @ p["up.weight"].T + p["up.bias"]
    added = torch.stack([torch.stack([z[:, 3 * i + j] for j in range(3)], 2) for i in (0, 1)], 2)
    expected = network(x) + added
    with attach(edit, network):
        torch.testing.assert_close(network(x), expected)


def test_reading_and_adding_at_one_site():
    network, x = nn.Identity(), normal(2, 3)
    body = Bottleneck(3, 2, 3, activation="relu", bias=True)
    edit = bypass(Site(""), (Site(""),), body)
    with attach(edit, network):
        torch.testing.assert_close(network(x), x + edit.body(x))


CONVOLUTIONS = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "one axis": nn.Conv1d(4, 6, 3),
}


def geometry(layer):
    return Conv(
        kernel=layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
    )


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_takes_a_bypass_that_is_one_convolution_of_low_rank(name):
    layer = copy.deepcopy(CONVOLUTIONS[name]).double()
    body = Bottleneck(4, 2, 6, activation="identity", bias=True, conv=geometry(layer))
    edit = bypass(Site("", "in", axis=1), (Site("", axis=1),), body, scale=2.0)
    x = normal(3, 4, 9, 9)[..., : 9 if layer.weight.ndim == 4 else 1].squeeze(-1)
    groups, width = layer.groups, 2 // layer.groups
    down = body.down.weight.unflatten(0, (groups, width))
    up = body.up.weight.reshape(groups, -1, width)
    merged = copy.deepcopy(layer)
    with torch.no_grad():  # W += s up down, b += s (up b_down + b_up), each group for itself
        merged.weight += 2 * torch.einsum("gow,gw...->go...", up, down).flatten(0, 1)
        bias = torch.einsum("gow,gw->go", up, body.down.bias.view(groups, width)).flatten()
        merged.bias += 2 * (bias + body.up.bias)
        expected = merged(x)
        with attach(edit, layer):
            torch.testing.assert_close(layer(x), expected)


def test_the_form_of_residual_blocks_is_two_convolutions_behind_a_norm():
    body = ConvBottleneck(4, 3, 6, groups=2, activation="relu")
    network, x = nn.Conv2d(4, 6, 1).double(), normal(2, 4, 5, 5)
    edit = bypass(Site("", "in", axis=1), (Site("", axis=1),), body)
    p = dict(edit.named_parameters())
    h = x.view(2, 2, 2, 25)
    mean, variance = h.mean((2, 3), keepdim=True), h.var((2, 3), keepdim=True, unbiased=False)
    h = ((h - mean) / (variance + 1e-5).sqrt()).view_as(x)
    h = h * p["norm.weight"].view(-1, 1, 1) + p["norm.bias"].view(-1, 1, 1)
    h = h * torch.sigmoid(h)
    h = functional.conv2d(h, p["down.weight"], p["down.bias"], padding=1).clamp(min=0)
    expected = network(x) + functional.conv2d(h, p["up.weight"], p["up.bias"], padding=1)
    with attach(edit, network):
        torch.testing.assert_close(network(x), expected)


BODIES = {
    "linear": lambda: Bottleneck(6, 4, 3, activation="relu", bias=True),
    "convolution": lambda: Bottleneck(
        6, 4, 3, activation="identity", bias=False, conv=geometry(nn.Conv2d(6, 3, 3))
    ),
    "residual": lambda: ConvBottleneck(6, 4, 3, groups=3, activation="silu"),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_start_is_zero_or_that_of_pytorchs_layers(name):
    body = BODIES[name]()
    body.initialise(torch.Generator().manual_seed(0))
    assert all(not parameter.any() for parameter in body.up.parameters())
    assert torch.equal(_drawn(body).down.weight, body.down.weight), "the generator decides"
    body.initialise(torch.Generator().manual_seed(0), zero=False)
    for layer, fan_in in (
        (body.down, body.down.weight[0].numel()),
        (body.up, body.up.weight[0].numel()),
    ):
        bound = fan_in**-0.5  # kaiming uniform with a = sqrt(5)
        for parameter in layer.parameters():
            assert parameter.abs().max() <= bound
        values = torch.cat([parameter.flatten() for parameter in layer.parameters()])
        assert values.unique().numel() > 0.9 * values.numel()
        assert 0.35 * bound < values.std() < 0.8 * bound  # bound / sqrt(3) for many values


def _drawn(body):
    other = copy.deepcopy(body)
    other.initialise(torch.Generator().manual_seed(0))
    return other


def test_the_start_draws_nothing_on_the_meta_device():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    with torch.device("meta"):
        body = BODIES["linear"]()
    body.initialise(generator, zero=False)
    assert body.down.weight.is_meta
    assert torch.equal(generator.get_state(), state)


def test_one_layer_is_a_matrix_and_a_bias_and_starts_at_zero_or_as_pytorchs():
    network, x = layers(), normal(5, 3)
    edit = bypass(Site("0", "in"), (Site("2"),), Linear(3, 4), scale=0.5)
    p = dict(edit.named_parameters())
    assert list(p) == ["linear.weight", "linear.bias"]
    expected = network(x) + 0.5 * (x @ p["linear.weight"].T + p["linear.bias"])
    with attach(edit, network):
        torch.testing.assert_close(network(x), expected)
    edit.initialise(torch.Generator().manual_seed(0), zero=False)
    assert 0 < edit.body.linear.weight.abs().max() <= 3**-0.5
    edit.initialise(torch.Generator())
    assert not any(parameter.any() for parameter in edit.parameters())


@pytest.mark.parametrize("name", [*BODIES, "one layer"])
@pytest.mark.parametrize("rows", [None, (1, 4)])
def test_a_bypass_is_rebuilt_from_its_spec_through_json(name, rows):
    sites = Site("a", "in", axis=1), (Site("b", "in", "x", axis=1), Site("c", axis=1))
    body = Linear(6, 3) if name == "one layer" else BODIES[name]()
    edit = bypass(*sites, body, scale=0.25, rows=rows)
    rebuilt = edit_from_spec(json.loads(json.dumps(edit.spec())))
    assert rebuilt.spec() == edit.spec()
    assert rebuilt.sites == edit.sites
    rebuilt.load_state_dict(edit.state_dict())
    rebuilt, x = rebuilt.double(), normal(2, 6, 5, 5)
    torch.testing.assert_close(rebuilt.body(x, 1), edit.body(x, 1))


# What is kept between the sites


def test_a_write_without_a_read_raises():
    network = layers()
    edit = bypass(Site("2", "in"), (Site("0"),), Bottleneck(6, 2, 6, activation="relu", bias=True))
    with attach(edit, network), pytest.raises(SmidgenError, match=r"0\.out came without 2\.in"):
        network(normal(2, 3))


def test_what_a_call_that_runs_past_the_last_write_keeps_is_dropped_when_it_returns():
    network, x = layers(), normal(2, 3)
    edit = bypass(Site("0", "in"), (Site("2"),))
    with attach(edit, network):
        network(x)
        network.forward = lambda x: network[1](network[0](x))
        network(x)
        assert edit.kept is None


def test_what_is_kept_is_overwritten_by_the_next_read_and_dropped_at_the_last_write():
    network, x = layers(), normal(2, 3)
    edit = bypass(Site("0", "in"), (Site("2"),))
    with attach(edit, network):
        network(x)
        assert edit.kept is None
        network[0](normal(7, 3, seed=3))  # as a call that broke off leaves it
        assert edit.kept is not None
        torch.testing.assert_close(network(x)[:1], network(x[:1]))
        assert edit.kept is None


@pytest.mark.parametrize("early_stop", [True, False])
def test_gradient_checkpointing_changes_nothing(early_stop):
    network, x = layers(), normal(2, 3).requires_grad_()
    edit = bypass(Site("0", "in"), (Site("2"),))
    with attach(edit, network):
        parameters = list(edit.parameters())
        expected = torch.autograd.grad(network(x).square().sum(), [x, *parameters])
        with torch.utils.checkpoint.set_checkpoint_early_stop(early_stop):
            output = checkpoint(network, x, use_reentrant=False)
            found = torch.autograd.grad(output.square().sum(), [x, *parameters])
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_float32_weights_keep_the_precision_of_a_bfloat16_base():
    network, x = layers().bfloat16(), normal(2, 3).bfloat16()
    edit = bypass(Site("0", "in"), (Site("2"),)).float()
    with attach(edit, network):
        output = network(x)
        output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert edit.body.down.weight.grad.dtype == torch.float32


def test_a_deep_copy_is_a_bypass_of_its_own():
    edit = bypass(Site("0", "in"), (Site("2"),))
    other = copy.deepcopy(edit)
    assert other.body.down.weight is dict(other.named_parameters())["down.weight"]
    assert other.body.down.weight is not edit.body.down.weight
    assert torch.equal(other.body.down.weight, edit.body.down.weight)


def test_a_call_that_breaks_off_leaves_nothing():
    network = layers()
    edit = bypass(Site("0", "in"), (Site("2"),))
    with attach(edit, network):
        network[1].forward = lambda x: x @ normal(2, 2)
        with pytest.raises(RuntimeError, match="shapes"):
            network(normal(5, 3))
        assert edit.kept is None


def test_detaching_leaves_nothing():
    network = layers()
    edit = bypass(Site("0", "in"), (Site("2"),))
    with attach(edit, network):
        network[0](normal(5, 3))
        assert edit.kept is not None
    assert edit.kept is None


# What is refused


@pytest.mark.parametrize("rows", [None, (1, 4)])
def test_parts_of_a_batch_that_are_read_one_by_one_are_not_added_to_the_whole(rows):
    class Chunked(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, x):
            return torch.cat([self.inner(part) for part in x.split(1)])

    body = Bottleneck(4, 2, 3 if rows else 4, activation="relu", bias=True)
    edit = bypass(Site("inner"), (Site(""),), body, rows=rows)
    network = Chunked().double()
    with attach(edit, network):
        network(normal(1, 3))
        with pytest.raises(SmidgenError, match=r"gives \(1, .\) and cannot be added to \(2, "):
            network(normal(2, 3))


def test_a_bypass_of_other_sizes_is_refused():
    body = Bottleneck(3, 2, 5, activation="relu", bias=True)
    with pytest.raises(SmidgenError, match=r"2\.out has 4 channels, the delta expects 5"):
        bypass(Site("0", "in"), (Site("2"),), body).check(layers())
    with pytest.raises(SmidgenError, match=r"2\.in has 6 channels, the delta expects 3"):
        bypass(Site("2", "in"), (Site("2"),)).check(layers())
    body = Bottleneck(3, 2, 2, activation="relu", bias=True)
    with pytest.raises(SmidgenError, match=r"has 4 channels, the delta adds to \(3, 5\)"):
        bypass(Site("0", "in"), (Site("2"),), body, rows=(3, 5)).check(layers())


def test_a_convolution_of_another_geometry_is_refused():
    own = nn.Conv2d(3, 4, 3, padding=1)
    for changes in ({"stride": (2, 2)}, {"padding": (0, 0)}, {"dilation": (2, 2)}):
        facts = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        good, bad = (
            Bypass(
                Site("", "in", axis=1),
                (Site("", axis=1),),
                Bottleneck(3, 2, 4, activation="identity", bias=False, conv=Conv(**each)),
            )
            for each in (facts, facts | changes)
        )
        good.check(own)
        with pytest.raises(SmidgenError, match="another geometry than Conv"):
            bad.check(own)


def test_a_padding_by_its_word_is_that_of_the_convolution_and_comes_back():
    own = nn.Conv2d(3, 4, 3, padding="same")
    conv = Conv(kernel=(3, 3), stride=(1, 1), padding="same", dilation=(1, 1))
    body = Bottleneck(3, 2, 4, activation="identity", bias=False, conv=conv)
    edit = Bypass(Site("", "in", axis=1), (Site("", axis=1),), body)
    edit.check(own)
    rebuilt = edit_from_spec(json.loads(json.dumps(edit.spec())))
    assert rebuilt.body.conv == conv
    assert body(torch.ones(1, 3, 5, 5)).shape == own(torch.ones(1, 3, 5, 5)).shape


@pytest.mark.parametrize(
    "changes",
    [{"kernel": (3,)}, {"stride": (0, 1)}, {"groups": 0}, {"kernel": (), "stride": ()}],
)
def test_a_geometry_that_is_none_is_refused(changes):
    facts = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    with pytest.raises(ValueError, match="expected"):
        Conv(**facts | changes)


def test_a_bypass_that_makes_no_sense_is_refused():
    body = Bottleneck(3, 2, 4, activation="relu", bias=True)
    with pytest.raises(ValueError, match="writes nowhere"):
        Bypass(Site("0"), (), body)
    with pytest.raises(ValueError, match=r"rows \(0, 3\) for a body of 4 channels"):
        Bypass(Site("0"), (Site("2"),), body, rows=(0, 3))
    with pytest.raises(ValueError, match='unknown activation "tanh"'):
        Bottleneck(3, 2, 4, activation="tanh", bias=True)
    with pytest.raises(ValueError, match="no multiple of the 2 groups"):
        ConvBottleneck(3, 2, 4, groups=2, activation="relu")
    with pytest.raises(SmidgenError, match='form "wavelet" are unknown'):
        edit_from_spec(
            {
                "kind": "bypass",
                "sites": [{"module": ""}] * 2,
                "shapes": {},
                "body": {"form": "wavelet"},
            }
        )
