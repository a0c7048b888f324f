"""Activations in one byte: how near gradients stay, what is kept exactly, and what it is for."""

from __future__ import annotations

import copy
import gc
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.core.storage import narrow, offload
from smidgen.errors import UsageError
from smidgen.fast.acting import acting
from smidgen.files.settings import make
from smidgen.models.base import Base
from smidgen.models.dit import DiT, DiTConfig
from smidgen.training.activations import SHORTEST, Packed, one_byte_kept
from smidgen.training.config import TrainingConfig
from smidgen.training.memory import step_bytes
from tests.tiny.bases import base_of
from tests.tiny.deltas import tiny_delta
from tests.tiny.weights import moved

SHAPE = DiTConfig(image_size=16, width=64, depth=2, num_heads=2, num_classes=3)
BATCH = 4
METHODS = ["difffit", "bitfit", "lora", "adaptformer", "vpt", "full"]


@pytest.fixture(scope="module")
def base() -> Base:
    return base_of(moved(DiT(SHAPE), 0.05, seed=0), ("ant", "bee", "cat"))


def delta_for(base: Base, method: str) -> Delta:
    return tiny_delta(base, method, std=0.05).float()


def outcome(
    base: Base, delta: Delta, *, fast: bool, one_byte: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The output, and the gradients of a random projection of it."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, 4, 16, 16, generator=draw)
    delta.zero_grad()
    base.denoiser.requires_grad_(False)
    assert isinstance(base.denoiser, DiT)
    with acting(delta, base.denoiser, fast=fast):
        with one_byte_kept(base.denoiser, delta) if one_byte else nullcontext():
            output = base.denoiser(x, torch.tensor([3.0, 20, 500, 999]), torch.arange(BATCH))
        (output * torch.randn(output.shape, generator=draw)).sum().backward()
    grads = {n: p.grad for n, p in delta.named_parameters() if p.grad is not None}
    return output.detach(), grads


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "hooks"])
@pytest.mark.parametrize("method", METHODS)
def test_the_output_is_exact_and_gradients_differ_by_what_the_rounding_allows(base, method, fast):
    delta = delta_for(base, method)
    exact, wanted = outcome(base, delta, fast=fast, one_byte=False)
    output, found = outcome(base, delta, fast=fast, one_byte=True)
    assert torch.equal(output, exact)
    assert found.keys() == wanted.keys()
    difference = torch.stack([((found[n] - wanted[n]) ** 2).sum() for n in wanted]).sum()
    whole = torch.stack([(one**2).sum() for one in wanted.values()]).sum()
    # half a step of 1/127 of the largest is 0.4 % of it, rows hold several layers of such errors
    assert (difference / whole).sqrt() < 0.02
    assert difference > 0  # or nothing was kept in a byte


def test_weights_in_few_bits_or_outside_the_device_do_not_stand_in_the_way(base):
    """They too watch what autograd keeps, and are asked first."""
    kept = copy.deepcopy(base.denoiser)
    narrow(kept, torch.bfloat16)
    offload(kept, "cpu")
    watched = replace(base, denoiser=kept)
    delta = delta_for(base, "difffit")
    exact, wanted = outcome(watched, delta, fast=False, one_byte=False)
    output, found = outcome(watched, delta, fast=False, one_byte=True)
    assert torch.equal(output, exact)
    every, other = (torch.cat([g.flatten() for g in one.values()]) for one in (found, wanted))
    assert 0 < (every - other).norm() / other.norm() < 0.02


def test_a_row_is_kept_to_half_a_step_of_its_largest_number():
    rows = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    rows[0, 0] = 0
    rows[1, 1] *= 1e6
    kept = Packed.of(rows)
    assert kept.whole.dtype == torch.int8
    step = rows.abs().amax(-1, keepdim=True) / 127
    assert ((kept.unpacked() - rows).abs() <= step / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_come_back_in_the_format_in_which_they_were(dtype):
    rows = torch.randn(2, 4, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert Packed.of(rows).unpacked().dtype == dtype


def test_what_several_functions_keep_is_kept_once_and_nothing_outlives_its_step(base):
    x = torch.randn(2, 8, 64, requires_grad=True)
    gc.collect()
    assert isinstance(base.denoiser, DiT)
    with one_byte_kept(base.denoiser):
        y = x * 1.0  # of a storage that is let go of, in whose place z may come to lie
        first = y.sigmoid() + y.exp()
        del y
        z = x * 2.0
        second = z.exp()
    (first.sum() + second.sum()).backward()
    with torch.no_grad():
        s, e = x.sigmoid(), x.exp()
        wanted = s * (1 - s) + e + 2 * (2 * x).exp()
    # exp keeps its result, sigmoid too: each to half a step of 1/127 of the largest in its row
    slack = (e.amax(-1, keepdim=True) + 2 * (2 * x).exp().amax(-1, keepdim=True) + 1) / 127
    assert x.grad is not None
    assert ((x.grad - wanted).abs() <= slack).all()


def test_statistics_log_sums_and_weights_are_not_touched(base):
    heads = SHAPE.num_heads
    assert isinstance(base.denoiser, DiT)
    log_sums = torch.randn(BATCH, heads, 64)
    shortest = torch.randn(BATCH, 64, SHORTEST - 1)
    weight = base.denoiser.get_parameter("blocks.0.mlp.fc1.weight")
    for tensor in (log_sums, shortest, torch.randn(BATCH, 64), weight):
        tensor = tensor.clone().requires_grad_() if tensor is not weight else tensor
        with one_byte_kept(base.denoiser):
            other = torch.ones_like(tensor, requires_grad=True)
            product = other * tensor
        product.sum().backward()
        assert other.grad is not None
        assert torch.equal(other.grad, tensor.detach())


def test_the_estimate_counts_fewer_bytes():
    network = DiT(replace(SHAPE, depth=8))
    base = base_of(network, ("ant", "bee", "cat"))
    delta = tiny_delta(base, "difffit")

    def counted(**settings) -> int:
        return step_bytes(base.denoiser, delta, TrainingConfig(batch_size=8, **settings))

    assert counted(activations="8bit") < 0.65 * counted()


@pytest.mark.parametrize("other", ["compile", "gradient_checkpointing"])
def test_what_does_not_go_with_it_is_refused(other: str):
    with pytest.raises(UsageError, match=f"activations 8bit and {other}"):
        make(TrainingConfig, {"activations": "8bit", other: True})
