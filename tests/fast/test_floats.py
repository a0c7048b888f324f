"""Products with frozen weights in floats of 8 bit: what they are, how far off, and where they are
taken. PyTorch multiplies them on a CPU too, by the same call.
"""

import pytest
import torch

from smidgen.fast import eight_bit
from smidgen.fast.eight_bit import (
    FLOAT8,
    INT8,
    Columns,
    columns,
    eight_bit_linears,
    kind_of,
    product,
)
from smidgen.training import frozen
from tests.fast.test_acting import METHODS
from tests.fast.test_eight_bit import base, delta_of, off, outcome

# A float of 3 bits of mantissa is off by a step of 1/8 of its power of 2, / sqrt(12) at the mean,
# and is 1.4 times that power at the mean: 0.026 of itself, and sqrt(2) times that for two factors.
ROUNDING = 0.05
IN_BFLOAT16 = 2**-8  # the output of a product


def nearest(x):
    """The nearest numbers of e4m3, by the definition: 1.mmm times 2**e, e from -6 on, ties even."""
    exponent = x.abs().clamp(min=2.0**-20).log2().floor().clamp(min=-6)
    step = 2.0 ** (exponent - 3)
    return (x / step).round() * step


@pytest.mark.parametrize("rows", [1, 33])
def test_a_product_is_that_of_the_rounded_rows_and_columns(rows):
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(2, rows, 32, generator=draw)
    b = torch.randn(32, 16, generator=draw)
    b[:, 3] *= 1000  # a channel that is far larger takes nothing from the others
    s, t = a.abs().amax(-1, keepdim=True) / 448, b.abs().amax(0) / 448
    rounded = nearest((a / s).double()) @ nearest((b / t).double()) * s * t
    found = product(a, columns(b, FLOAT8)).double()
    scale = (a.double().abs() @ b.double().abs()).float()
    assert ((found - rounded).abs() < 2 * IN_BFLOAT16 * scale).all()
    assert ((found - rounded).abs() < IN_BFLOAT16 * rounded.abs() + 1e-4 * scale).all()
    for channel in (2, 3):
        one, exact = found[..., channel], (a.double() @ b.double())[..., channel]
        assert off(one, exact) < 2 * ROUNDING


def test_rows_of_zeros_stay_zeros_and_scales_may_be_negative():
    b = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    numbers, scales = columns(b, FLOAT8)
    assert not product(torch.zeros(2, 3, 32), Columns(numbers, scales)).any()
    a = torch.ones(2, 32)
    assert torch.equal(product(a, Columns(numbers, -scales)), -product(a, Columns(numbers, scales)))


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(eight_bit, "kind_of", lambda device: FLOAT8)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "full"])
def test_backward_alone_leaves_the_output_and_rounds_the_gradients(hopper, method):
    network = base()
    delta = delta_of(network, method)
    (output, exact), (same, rounded) = (
        outcome(network, delta, each) for each in ("exact", "8bit-backward")
    )
    assert torch.allclose(same, output, rtol=1e-6, atol=1e-6 * float(output.abs().max()))
    assert exact.keys() == rounded.keys()
    every, other = (torch.cat([g.flatten() for g in one.values()]) for one in (rounded, exact))
    assert 0 < off(every, other) < ROUNDING


def test_both_ways_round_the_output_too_but_never_without_gradients(hopper):
    network = base()
    delta = delta_of(network, "difffit")
    exact, rounded = (outcome(network, delta, each)[0] for each in ("exact", "8bit"))
    # more than a training takes (training/frozen.py), on random weights at least
    assert frozen.MOST < off(rounded, exact) < 2 * ROUNDING
    plain = outcome(network, delta, "exact", grad=False)
    assert torch.equal(outcome(network, delta, "8bit", grad=False), plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert outcome(network, delta, "8bit")[0].dtype == torch.bfloat16


def test_gpus_since_hopper_multiply_floats_and_others_whole_numbers(monkeypatch):
    gpu = torch.device("cuda")
    for capability, kind in (((8, 0), INT8), ((8, 9), INT8), ((9, 0), FLOAT8), ((10, 0), FLOAT8)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert kind_of(gpu) == kind
    assert kind_of(torch.device("cpu")) == INT8


@pytest.mark.parametrize(("width", "kind"), [(64, FLOAT8), (40, INT8)])
def test_matrices_whose_sides_no_gpu_takes_stay_whole_numbers(hopper, width, kind):
    found = eight_bit_linears(base(width).denoiser, "8bit").values()
    assert {form.forward.numbers.dtype for form in found} == {kind}
    assert {form.backward.numbers.dtype for form in found} == {kind}
