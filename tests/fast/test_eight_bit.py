"""Products with frozen weights in 8 bit: what they are, how far off, and that nothing else is."""

import pytest
import torch

from smidgen.errors import UsageError
from smidgen.fast import eight_bit
from smidgen.fast.acting import acting
from smidgen.fast.eight_bit import AT_ONCE, check_eight_bit, columns, product
from smidgen.models.dit import DiT, DiTConfig
from tests.fast.test_acting import METHODS, inputs
from tests.tiny.bases import base_of
from tests.tiny.deltas import tiny_delta
from tests.tiny.weights import moved

# Rounding to n + 1/2 of 127 parts leaves 1 / sqrt(12) of a part at the mean. A row's largest number
# is some 3 times its length / sqrt(K): an error of 3 / 127 / sqrt(12) = 0.007 for each factor.
ROUNDING = 0.02


def off(one, other):
    """The length of the difference, of the other's."""
    return float((one - other).norm() / other.norm())


def base(width=64):
    network = DiT(DiTConfig(image_size=8, width=width, depth=2, num_heads=4, num_classes=3))
    return base_of(moved(network, width**-0.5, seed=0), ("ant", "bee", "cat"))


def outcome(base, delta, frozen_precision, grad=True):
    x, t, y = inputs(base, torch.float32)
    base.denoiser.requires_grad_(False)
    with acting(delta, base.denoiser, frozen_precision=frozen_precision):
        if not grad:
            with torch.no_grad():
                return base.denoiser(x, t, y)
        output = base.denoiser(x, t, y)
        delta.zero_grad()
        output.square().mean().backward()
    found = {n: p.grad.clone() for n, p in delta.named_parameters() if p.grad is not None}
    return output.detach(), found


def delta_of(base, method):
    return tiny_delta(base, method, **METHODS[method]).float()


@pytest.mark.parametrize("rows", [1, AT_ONCE, 2 * AT_ONCE + 3])
def test_a_product_is_that_of_the_rounded_rows_and_columns(rows):
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(rows, 24, generator=draw)
    b = torch.randn(24, 16, generator=draw)
    s, t = a.abs().amax(1, keepdim=True) / 127, b.abs().amax(0) / 127
    rounded = (a / s).round().double() @ (b / t).round().double() * s * t
    assert torch.allclose(product(a, columns(b)), rounded.float(), rtol=1e-5, atol=1e-5)
    assert off(product(a, columns(b)), a @ b) < ROUNDING


def test_rows_of_zeros_stay_zeros():
    assert not product(torch.zeros(2, 3, 8), columns(torch.zeros(8, 4))).any()


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_backward_alone_leaves_the_output_and_rounds_the_gradients(method):
    network = base()
    delta = delta_of(network, method)
    (output, exact), (same, rounded) = (
        outcome(network, delta, each) for each in ("exact", "8bit-backward")
    )
    assert torch.allclose(same, output, rtol=1e-6, atol=1e-6 * float(output.abs().max()))
    assert exact.keys() == rounded.keys()
    every, other = (torch.cat([g.flatten() for g in one.values()]) for one in (rounded, exact))
    assert 0 < off(every, other) < ROUNDING


def test_both_ways_round_the_output_too_but_never_without_gradients():
    network = base()
    delta = delta_of(network, "difffit")
    exact, rounded = (outcome(network, delta, each)[0] for each in ("exact", "8bit"))
    assert 0 < off(rounded, exact) < 2 * ROUNDING
    assert torch.equal(outcome(network, delta, "8bit", grad=False), network_alone(network, delta))


def network_alone(base, delta):
    return outcome(base, delta, "exact", grad=False)


def test_recomputed_blocks_give_the_same():
    network = base()
    delta = delta_of(network, "difffit")
    expected = outcome(network, delta, "8bit")
    network.denoiser.gradient_checkpointing = True
    output, gradients = outcome(network, delta, "8bit")
    assert torch.allclose(output, expected[0], atol=1e-5)
    for name, gradient in gradients.items():
        assert off(gradient, expected[1][name]) < ROUNDING


def test_trained_weights_are_never_rounded():
    network = base()
    delta = delta_of(network, "full")
    (output, exact), (same, gradients) = (
        outcome(network, delta, each) for each in ("exact", "8bit")
    )
    assert torch.equal(output, same)
    assert all(torch.equal(exact[name], gradients[name]) for name in exact)


def test_under_autocast_outputs_and_gradients_keep_their_precision():
    network = base()
    delta = delta_of(network, "difffit")
    found = []
    for each in ("exact", "8bit"):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(outcome(network, delta, each))
    assert found[0][0].dtype == found[1][0].dtype == torch.bfloat16
    assert off(found[1][0].float(), found[0][0].float()) < 2 * ROUNDING


@pytest.mark.parametrize("has", [True, False])
def test_a_cpu_without_instructions_is_refused(monkeypatch, has):
    monkeypatch.setattr(eight_bit, "has_int8", lambda: has)
    check_eight_bit(torch.device("cuda"))
    if has:
        check_eight_bit(torch.device("cpu"))
        return
    with pytest.raises(UsageError, match=r"frozen_precision in 8 bit needs .* VNNI"):
        check_eight_bit(torch.device("cpu"))
