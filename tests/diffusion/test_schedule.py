"""The tables against Gaussian algebra written out here, and respacing against its rules."""

import math
from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch

from smidgen.diffusion.schedule import Schedule, gather, spaced_indices

STEPS = 1000


def linear_betas() -> list[float]:
    return [1e-4 + (0.02 - 1e-4) * i / (STEPS - 1) for i in range(STEPS)]


def test_marginals_compose_the_single_steps():
    schedule = Schedule.linear()
    signal, variance = 1.0, 0.0
    for i, beta in enumerate(linear_betas()):
        # x_i = sqrt(1 - beta) x_{i-1} + sqrt(beta) noise
        signal, variance = math.sqrt(1 - beta) * signal, (1 - beta) * variance + beta
        assert schedule.sqrt_alphas_cumprod[i].item() == pytest.approx(signal, rel=1e-10)
        std = schedule.sqrt_one_minus_alphas_cumprod[i].item()
        assert std**2 == pytest.approx(variance, rel=1e-10)


def test_posterior_is_the_product_of_two_gaussians():
    schedule = Schedule.linear()
    abar = [1.0, *accumulate((1 - b for b in linear_betas()), lambda a, b: a * b)]
    x0, x_t = 0.7, -1.3
    for i, beta in enumerate(linear_betas()):
        if i == 0:
            continue
        # q(x_{t-1} | x_0) times q(x_t | x_{t-1}), both as Gaussians in x_{t-1}: precisions add.
        prior_precision = 1 / (1 - abar[i])
        step_precision = (1 - beta) / beta
        precision = prior_precision + step_precision
        mean = prior_precision * math.sqrt(abar[i]) * x0
        mean = (mean + step_precision * x_t / math.sqrt(1 - beta)) / precision
        of_x0 = schedule.posterior_mean_coef1[i].item()
        of_x_t = schedule.posterior_mean_coef2[i].item()
        assert of_x0 * x0 + of_x_t * x_t == pytest.approx(mean, rel=1e-8)
        assert schedule.posterior_variance[i].item() == pytest.approx(1 / precision, rel=1e-8)
        log_variance = schedule.posterior_log_variance_clipped[i].item()
        assert math.exp(log_variance) == pytest.approx(1 / precision, rel=1e-8)


def test_posterior_of_the_first_row_is_x0_itself():
    schedule = Schedule.linear()
    assert schedule.posterior_mean_coef1[0].item() == pytest.approx(1, abs=1e-12)
    assert schedule.posterior_mean_coef2[0].item() == 0
    assert schedule.posterior_variance[0].item() == 0
    clipped = schedule.posterior_log_variance_clipped
    assert clipped[0] == clipped[1]


@pytest.mark.parametrize("spacing", ["uniform", "ddim", "half-open"])
@pytest.mark.parametrize("num_steps", [2, 7, 20, 50, 250])
def test_respacing_keeps_alphas_cumprod_of_the_steps_it_visits(spacing, num_steps):
    schedule = Schedule.linear()
    respaced = schedule.respace(num_steps, spacing)
    visited = respaced.timesteps
    assert respaced.num_steps == num_steps
    assert torch.allclose(
        respaced.alphas_cumprod, schedule.alphas_cumprod[visited], rtol=1e-12, atol=0
    )
    # One respaced step is all the single steps between two visited ones, taken together.
    betas = linear_betas()
    for row, (before, after) in enumerate(pairwise([-1, *visited.tolist()])):
        kept = math.prod(1 - beta for beta in betas[before + 1 : after + 1])
        assert respaced.betas[row].item() == pytest.approx(1 - kept, rel=1e-8)


def test_respacing_to_all_steps_changes_nothing():
    schedule = Schedule.linear(num_steps=40)
    respaced = schedule.respace(40)
    assert respaced.timesteps.tolist() == list(range(40))
    assert torch.allclose(respaced.betas, schedule.betas, rtol=1e-9, atol=0)


def test_respacing_twice_keeps_the_original_timesteps():
    once = Schedule.linear().respace(50)
    twice = once.respace(5)
    assert torch.equal(twice.timesteps, once.timesteps[[0, 12, 24, 37, 49]])
    assert torch.allclose(twice.alphas_cumprod, once.alphas_cumprod[[0, 12, 24, 37, 49]])


@pytest.mark.parametrize("num_steps", [2, 3, 7, 21, 23, 50, 250, 333, 999, 1000])
def test_uniform_spacing_is_the_rule_of_the_released_samplers(num_steps):
    stride = (STEPS - 1) / (num_steps - 1)
    expected = [round(p) for p in accumulate([0.0] + [stride] * (num_steps - 1))]
    assert spaced_indices(STEPS, num_steps) == expected


def test_uniform_spacing_is_strict_and_reaches_both_ends():
    for num_steps in range(2, STEPS + 1):
        indices = spaced_indices(STEPS, num_steps)
        assert (len(indices), indices[0], indices[-1]) == (num_steps, 0, STEPS - 1)
        assert all(a < b for a, b in pairwise(indices))


def test_one_uniform_step_is_the_noisiest():
    assert spaced_indices(STEPS, 1) == [STEPS - 1]


def test_ddim_spacing_takes_the_smallest_stride():
    assert spaced_indices(STEPS, 50, "ddim") == list(range(0, STEPS, 20))
    assert spaced_indices(STEPS, 7, "ddim") == [0, 143, 286, 429, 572, 715, 858]


def test_half_open_spacing_is_the_even_grid_without_zero():
    for num_steps in range(1, STEPS):
        grid = np.linspace(0, STEPS - 1, num_steps + 1).round()[1:]
        assert spaced_indices(STEPS, num_steps, "half-open") == grid.astype(int).tolist()


@pytest.mark.parametrize(
    ("num_steps", "spacing", "message"),
    [
        (0, "uniform", "give 1 to 1000"),
        (-3, "ddim", "give 1 to 1000"),
        (1001, "uniform", "give 1 to 1000"),
        (700, "ddim", 'use spacing "uniform"'),
        (1000, "half-open", "give 1 to 999"),
    ],
)
def test_impossible_numbers_of_steps_are_refused(num_steps, spacing, message):
    with pytest.raises(ValueError, match=message):
        Schedule.linear().respace(num_steps, spacing)


@pytest.mark.parametrize("beta_end", [0.0, 1.0, -0.1, math.nan])
def test_impossible_betas_are_refused(beta_end):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Schedule.linear(10, 1e-4, beta_end)


def test_rows_are_found_by_their_share_of_noise():
    schedule = Schedule.linear()
    abar = schedule.alphas_cumprod
    shares = (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt())
    assert torch.equal(schedule.rows_at(shares), torch.arange(1000))
    assert torch.equal(schedule.rows_at(shares - 1e-9), torch.arange(1000))
    assert schedule.rows_at(torch.tensor([0.0, 1.0])).tolist() == [0, 999]


def test_gather_follows_the_data():
    schedule = Schedule.linear()
    like = torch.zeros(3, 4, 2, 2, dtype=torch.bfloat16)
    values = gather(schedule.betas, torch.tensor([5, 0, 999]), like)
    assert values.shape == (3, 1, 1, 1)
    assert values.dtype == torch.bfloat16
    assert torch.equal(values.flatten(), schedule.betas[[5, 0, 999]].bfloat16())


def test_betas_that_leave_nothing_of_an_image_are_refused():
    for num, beta in ((1000, 0.9), (8, 1 - 1e-8)):
        with pytest.raises(ValueError, match="leave nothing of an image"):
            Schedule.from_betas(torch.full((num,), beta, dtype=torch.float64))
    usable = Schedule.linear(1000, 1e-3, 0.1)  # a hundredfold of the usual noise
    kept = usable.respace(7).alphas_cumprod[-1].item()
    assert kept == pytest.approx(usable.alphas_cumprod[-1].item(), rel=1e-9)
