"""AdamW with moments in a byte a number, beside that of PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from smidgen.training.optimizer import (
    AT_ONCE,
    BLOCK,
    CODES,
    SMALLEST,
    bytes_of_moments,
    make_optimizer,
)


def coded(name, values, seed=0):
    """What is read again after writing, once."""
    codes = torch.zeros(len(values), dtype=torch.uint8)
    scales = torch.zeros(math.ceil(len(values) / BLOCK))
    CODES[name].pack(values, codes, scales, torch.Generator().manual_seed(seed))
    return CODES[name].unpacked(codes, scales)


def numbers(name, size):
    generator = torch.Generator().manual_seed(7)
    values = torch.randn(size, generator=generator) * torch.logspace(-3, 0, size)
    return values if CODES[name].signed else values.square()


@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("size", [1, 255, 257, 5000])
def test_a_number_is_read_again_as_one_of_the_two_levels_beside_it(name, size):
    values = numbers(name, size)
    found = coded(name, values)
    largest = values.abs().max()
    assert ((found - values).abs() <= values.abs() / 8 + 2**-15 * largest).all()
    assert (found.sign() * values.sign() >= 0).all()


@pytest.mark.parametrize("name", CODES)
def test_the_mean_over_chances_is_the_number_itself(name):
    values = numbers(name, 1000)
    mean = sum(coded(name, values, seed) for seed in range(400)) / 400
    seen = values.abs() > 1e-3 * values.abs().max()
    error = ((mean - values).abs() / values.abs())[seen]
    assert error.max() < 0.02  # a level is up to 0.125 from the next


@pytest.mark.parametrize("name", CODES)
def test_nothing_but_zeros_stays_so(name):
    assert not coded(name, torch.zeros(700)).any()


def trained(eight_bit, size, steps=300, seed=3):
    """A weight that should become a target, after gradients with noise; the target."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(size, generator=generator)
    weight = nn.Parameter(torch.zeros(size))
    optimizer = make_optimizer([weight], eight_bit=eight_bit, weight_decay=0.0, seed=seed)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(steps):
        noise = torch.randn(size, generator=generator)
        weight.grad = weight.detach() - target + 0.3 * noise
        optimizer.step()
    return weight.detach(), target


def test_a_training_ends_where_that_with_exact_moments_ends():
    size = AT_ONCE + SMALLEST + 3  # more than one part, and no whole blocks
    (eight_bit, target), (exact, _) = trained(True, size), trained(False, size)
    assert (exact - target).square().mean() < 0.05
    assert (eight_bit - target).square().mean() < 1.1 * (exact - target).square().mean()


def test_small_tensors_are_trained_as_by_pytorch():
    eight_bit, exact = trained(True, 100)[0], trained(False, 100)[0]
    torch.testing.assert_close(eight_bit, exact, rtol=1e-5, atol=1e-7)


def test_steps_depend_on_the_seed_and_nothing_else():
    found = trained(True, SMALLEST, 5)[0]
    assert torch.equal(trained(True, SMALLEST, 5)[0], found)
    assert not torch.equal(trained(True, SMALLEST, 5, seed=4)[0], found)


def test_weight_decay_is_that_of_pytorch():
    found = {}
    for eight_bit in (False, True):
        weight = nn.Parameter(torch.ones(SMALLEST))
        optimizer = make_optimizer([weight], eight_bit=eight_bit, weight_decay=0.1, seed=0)
        optimizer.param_groups[0]["lr"] = 0.5
        weight.grad = torch.zeros(SMALLEST)
        optimizer.step()
        found[eight_bit] = weight.detach()
    torch.testing.assert_close(found[True], found[False])


@pytest.mark.parametrize("eight_bit", [False, True])
def test_the_bytes_that_are_said_are_those_that_are_kept(eight_bit):
    weights = [nn.Parameter(torch.zeros(size)) for size in (70_001, SMALLEST - 1, SMALLEST)]
    optimizer = make_optimizer(weights, eight_bit=eight_bit, weight_decay=0.0, seed=0)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = [m for state in optimizer.state.values() for m in state.values() if m.ndim]
    count = sum(moment.nbytes for moment in kept)
    assert bytes_of_moments(weights, eight_bit=eight_bit) == count
    assert not eight_bit or count < 0.36 * bytes_of_moments(weights, eight_bit=False)
