"""The experiment of the theorem at its smallest: scales are found, with more data more exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench import theorem
from smidgen.diffusion.process import Diffusion
from smidgen.diffusion.schedule import Schedule

SMALL = theorem.Settings(
    num_elements=4, width=16, source_steps=300, steps=300, batch_size=256, lr=0.1
)
PROCESS = Diffusion(schedule=Schedule.linear(), prediction="epsilon")


@pytest.fixture(scope="module")
def networks():
    return theorem.denoisers(SMALL, PROCESS)


@pytest.mark.slow
def test_scales_are_found_and_the_error_falls_with_the_data(networks):
    def error(size, denoiser="exact"):
        network = networks[denoiser]
        return theorem.errors_of(network, PROCESS, SMALL, theorem.SITES, size, 0)["answer"]

    untrained = float((1 / theorem.true_scales(SMALL, 0) - 1).square().mean().sqrt())
    few, more, infinite = (error(size) for size in (16, 256, theorem.INFINITE))
    assert few < untrained / 2
    assert max(more, infinite) < few / 3
    assert error(theorem.INFINITE, "trained") < untrained / 2


def test_the_exact_denoiser_is_the_posterior_mean():
    state, level = 0.7, 0.5
    x = np.linspace(-6, 6, 100_001)
    law = sum(
        weight * np.exp(-((x - mean) ** 2) / (2 * theorem.DEVIATION**2))
        for weight, mean in zip(theorem.WEIGHTS, theorem.MEANS, strict=True)
    )
    posterior = law * np.exp(-((state - x) ** 2) / (2 * level**2))
    expected = (posterior * x).sum() / posterior.sum()
    guess = theorem.Exact()(torch.tensor([[state]]), torch.tensor([[level]]))
    assert guess.item() == pytest.approx(expected, abs=1e-5)


def test_the_source_has_mean_0_and_variance_1_and_the_bound_is_that_of_a_gaussian(monkeypatch):
    mean = sum(w * m for w, m in zip(theorem.WEIGHTS, theorem.MEANS, strict=True))
    square = sum(w * m * m for w, m in zip(theorem.WEIGHTS, theorem.MEANS, strict=True))
    assert (mean, square + theorem.DEVIATION**2) == pytest.approx((0, 1), abs=1e-6)
    monkeypatch.setattr(theorem, "MEANS", (0.0, 0.0))
    # the relative error of the deviation of n numbers, sqrt(1 / (2 n))
    assert theorem.least_error() == pytest.approx(0.5**0.5, rel=1e-4)
