"""The loss against torch.distributions, the closed form of the bound, and its own definition."""

import inspect
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from smidgen.diffusion import objective
from smidgen.diffusion.objective import (
    add_noise,
    discretized_gaussian_nll,
    drop_labels,
    epsilon_from_v,
    hybrid_loss,
    learned_log_variance,
    v_loss,
    vlb_bits,
)
from smidgen.diffusion.schedule import Schedule

ROWS = torch.tensor([0, 1, 2, 17, 500, 998, 999])


def example(rows=ROWS, schedule=None, channels=4, dtype=torch.float64, seed=0):
    """(output, x0, x_t, t, noise, schedule): an output near the noise, with a learned variance."""
    schedule = schedule or Schedule.linear()
    generator = torch.Generator().manual_seed(seed)
    shape = (len(rows), channels, 3, 5)
    x0, noise, error, v = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    x_t = add_noise(schedule, x0, rows, noise)
    output = torch.cat([noise + 0.3 * error, 0.8 * torch.tanh(v)], dim=1)
    return output.to(dtype), x0.to(dtype), x_t.to(dtype), rows, noise.to(dtype), schedule


def column(table, rows):
    return table[rows].reshape(-1, 1, 1, 1)


def test_noise_is_added_as_the_marginal_says():
    _, x0, x_t, t, noise, schedule = example()
    abar = column(torch.cumprod(1 - schedule.betas, 0), t)
    assert torch.allclose(x_t, Normal(abar.sqrt() * x0, 1).mean + (1 - abar).sqrt() * noise)


def test_terms_above_zero_are_the_kl_of_two_gaussians():
    output, x0, x_t, t, _, schedule = example(ROWS[1:])
    epsilon, v = output.chunk(2, dim=1)
    beta, abar = column(schedule.betas, t), column(schedule.alphas_cumprod, t)
    abar_prev = abar / (1 - beta)
    # q(x_{t-1} | x_0) q(x_t | x_{t-1}) as Gaussians in x_{t-1}: precisions add.
    prior_precision, step_precision = 1 / (1 - abar_prev), (1 - beta) / beta
    variance = 1 / (prior_precision + step_precision)

    def posterior_mean(clean):
        mean = prior_precision * abar_prev.sqrt() * clean
        return variance * (mean + step_precision * x_t / (1 - beta).sqrt())

    model_std = (((v + 1) / 2 * beta.log() + (1 - v) / 2 * variance.log()) / 2).exp()
    predicted = (x_t - (1 - abar).sqrt() * epsilon) / abar.sqrt()
    expected = kl_divergence(
        Normal(posterior_mean(x0), variance.sqrt()), Normal(posterior_mean(predicted), model_std)
    )
    bits = vlb_bits(epsilon, v, x0, x_t, t, schedule)
    assert torch.allclose(bits, expected.mean(dim=(1, 2, 3)) / math.log(2), rtol=1e-6)


def test_the_term_at_zero_is_the_mass_of_a_level():
    output, _, _, t, noise, schedule = example(torch.zeros(6, dtype=torch.long))
    epsilon, v = output.chunk(2, dim=1)
    x0 = torch.tensor([-1.4, -0.9995, -0.5, 0.1, 0.9995, 2.0], dtype=torch.float64)
    x0 = x0.reshape(-1, 1, 1, 1).expand_as(noise)
    x_t = add_noise(schedule, x0, t, noise)
    beta = schedule.betas[0]
    mean = (x_t - beta.sqrt() * epsilon) / (1 - beta).sqrt()
    log_low = schedule.posterior_variance[1].log()
    std = ((log_low + (v + 1) / 2 * (beta.log() - log_low)) / 2).exp()
    level = Normal(mean, std)
    below = torch.where(x0 < -0.999, 0.0, level.cdf(x0 - 1 / 255))
    above = torch.where(x0 > 0.999, 1.0, level.cdf(x0 + 1 / 255))
    expected = -(above - below).log().mean(dim=(1, 2, 3)) / math.log(2)
    assert torch.allclose(vlb_bits(epsilon, v, x0, x_t, t, schedule), expected, rtol=1e-8)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (0.8, 0.01), (-2.0, 0.5), (0.3, 5.0)])
def test_the_masses_of_all_levels_sum_to_one(mean, std):
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(1, 1, 1, -1)
    log_variance = torch.full_like(levels, 2 * math.log(std))
    nll = discretized_gaussian_nll(levels, levels - mean, log_variance)
    assert torch.exp(-nll).sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sign", [-1, 1])
def test_both_tails_keep_their_digits_in_float32(sign):
    # Six standard deviations away: 1e-9, below what a float32 next to 1 can hold.
    difference = torch.full((1, 1, 1, 1), sign * 0.6, dtype=torch.float64)
    log_variance = torch.full_like(difference, 2 * math.log(0.1))
    x0 = torch.zeros_like(difference)
    exact = -math.log(
        (
            Normal(0.0, 0.1).cdf(torch.tensor(-0.6 + 1 / 255, dtype=torch.float64))
            - Normal(0.0, 0.1).cdf(torch.tensor(-0.6 - 1 / 255, dtype=torch.float64))
        ).item()
    )
    single = discretized_gaussian_nll(x0.float(), difference.float(), log_variance.float())
    assert single.item() == pytest.approx(exact, rel=1e-4)


def gaussian_bound(std, v_shift=0.0):
    """The bound in bits, for 1-D data N(0, std^2) and the exact reverse process (v shifted)."""
    schedule = Schedule.linear()
    # Gauss-Hermite quadrature over x_0 and the noise: exact for the KL terms, which are quadratic.
    nodes, weights = (torch.tensor(values) for values in np.polynomial.hermite_e.hermegauss(8))
    rows, i, j = torch.meshgrid(
        torch.arange(schedule.num_steps), torch.arange(8), torch.arange(8), indexing="ij"
    )
    rows, i, j = rows.flatten(), i.flatten(), j.flatten()
    x0, noise = (nodes[index].reshape(-1, 1, 1, 1) for index in (i, j))
    x0 = std * x0
    x_t = add_noise(schedule, x0, rows, noise)
    beta, abar = column(schedule.betas, rows), column(schedule.alphas_cumprod, rows)
    abar_prev = abar / (1 - beta)
    epsilon = (1 - abar).sqrt() * x_t / (abar * std**2 + 1 - abar)
    precision = 1 / (abar_prev * std**2 + 1 - abar_prev) + (1 - beta) / beta
    low = column(schedule.posterior_log_variance_clipped, rows)
    v = 2 * (-precision.log() - low) / (beta.log() - low) - 1 + v_shift
    terms = vlb_bits(epsilon, v, x0, x_t, rows, schedule)
    total = (terms * weights[i] * weights[j]).sum() / weights.sum() ** 2
    last = schedule.alphas_cumprod[-1]
    prior = kl_divergence(Normal(last.sqrt() * std, (1 - last).sqrt()), Normal(0.0, 1.0))
    return (total + prior / math.log(2)).item()


def test_the_bound_of_gaussian_data_is_its_entropy():
    # The exact reverse process makes the bound tight: entropy, in levels 2/255 wide. The levels
    # themselves, next to a last standard deviation of 0.01, cost about 0.001 bits.
    std = 0.2
    entropy = 0.5 * math.log2(2 * math.pi * math.e * std**2) + math.log2(255 / 2)
    assert gaussian_bound(std) == pytest.approx(entropy, abs=2e-3)
    assert gaussian_bound(std, v_shift=0.5) > entropy + 0.03
    assert gaussian_bound(std, v_shift=-0.5) > entropy + 0.03


def test_the_learned_variance_runs_from_posterior_to_beta():
    schedule = Schedule.linear()
    rows = torch.tensor([1, 10, 999])
    ones = torch.ones(3, 1, 1, 1, dtype=torch.float64)
    low = learned_log_variance(-ones, rows, schedule).exp()
    middle = learned_log_variance(0 * ones, rows, schedule).exp()
    high = learned_log_variance(ones, rows, schedule).exp()
    assert torch.allclose(low, column(schedule.posterior_variance, rows))
    assert torch.allclose(high, column(schedule.betas, rows))
    assert torch.allclose(middle, (low * high).sqrt())


@pytest.mark.parametrize(("num_steps", "factor"), [(1000, 1.0), (100, 0.1)])
def test_hybrid_loss_adds_a_thousandth_of_the_whole_bound(num_steps, factor):
    rows = torch.tensor([0, 1, 50, 99])
    output, x0, x_t, t, noise, schedule = example(rows, Schedule.linear().respace(num_steps))
    epsilon, v = output.chunk(2, dim=1)
    simple = ((epsilon - noise) ** 2).flatten(1).mean(dim=1)
    expected = simple + factor * vlb_bits(epsilon, v, x0, x_t, t, schedule)
    assert torch.allclose(hybrid_loss(output, x0, x_t, t, noise, schedule), expected)


def test_the_bound_teaches_the_variance_only():
    output, *rest = example()

    def gradient(weight):
        leaf = output.clone().requires_grad_()
        hybrid_loss(leaf, *rest, vlb_weight=weight).sum().backward()
        assert leaf.grad is not None
        return leaf.grad.chunk(2, dim=1)

    (epsilon_with, v_with), (epsilon_without, v_without) = gradient(1.0), gradient(0.0)
    assert torch.equal(epsilon_with, epsilon_without)
    assert (v_without == 0).all()
    assert (v_with.abs().amax(dim=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize("gamma", [0.5, 5.0])
def test_min_snr_weighs_the_simple_loss_alone(gamma):
    output, x0, x_t, t, noise, schedule = example()
    epsilon = output[:, :4]
    abar = schedule.alphas_cumprod[t]
    snr = abar / (1 - abar)
    weight = torch.minimum(snr, torch.tensor(gamma)) / snr
    plain = hybrid_loss(epsilon, x0, x_t, t, noise, schedule)
    assert torch.allclose(
        hybrid_loss(epsilon, x0, x_t, t, noise, schedule, min_snr=gamma), weight * plain
    )
    bound = hybrid_loss(output, x0, x_t, t, noise, schedule) - plain
    weighted = hybrid_loss(output, x0, x_t, t, noise, schedule, min_snr=gamma)
    assert torch.allclose(weighted, weight * plain + bound)


def test_an_output_of_other_channels_is_refused():
    output, *rest = example()
    with pytest.raises(ValueError, match="has 6 channels for 4"):
        hybrid_loss(output[:, :6], *rest)


def test_the_loss_of_a_reduced_precision_output_is_computed_in_float32():
    output, x0, x_t, t, noise, schedule = example(dtype=torch.float32)
    reduced = output.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = hybrid_loss(reduced, x0, x_t, t, noise, schedule)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, hybrid_loss(reduced.float(), x0, x_t, t, noise, schedule))


def test_float32_agrees_with_float64():
    single = hybrid_loss(*example(dtype=torch.float32))
    assert torch.allclose(single.double(), hybrid_loss(*example()), rtol=1e-3)


def test_losses_and_gradients_of_a_fresh_network_are_finite():
    # It predicts zero for both, on latents far outside [-1, 1].
    _, x0, _, t, noise, schedule = example(dtype=torch.float32)
    x0 = 10 * x0
    output = torch.zeros(len(t), 8, 3, 5, requires_grad=True)
    loss = hybrid_loss(output, x0, add_noise(schedule, x0, t, noise), t, noise, schedule)
    loss.sum().backward()
    assert output.grad is not None
    assert loss.isfinite().all()
    assert output.grad.isfinite().all()


def test_the_loss_compiles_into_one_graph(monkeypatch):
    # No compiler sees through the shape checks of the tests: they are taken off here.
    for name, function in vars(objective).copy().items():
        if inspect.isfunction(function):
            monkeypatch.setattr(objective, name, inspect.unwrap(function))
    arguments = example(dtype=torch.float32)
    compiled = torch.compile(objective.hybrid_loss, fullgraph=True, backend="eager")
    expected = hybrid_loss(*arguments, min_snr=5.0)
    assert torch.allclose(compiled(*arguments, min_snr=5.0), expected)


def test_labels_are_dropped_with_the_given_probability():
    labels = torch.arange(20_000) % 7
    dropped = drop_labels(labels, 99, 0.1, torch.Generator().manual_seed(0))
    again = drop_labels(labels, 99, 0.1, torch.Generator().manual_seed(0))
    kept = dropped != 99
    assert torch.equal(dropped, again)
    assert dropped.dtype == labels.dtype
    assert torch.equal(dropped[kept], labels[kept])
    # four standard deviations of a binomial share
    assert (~kept).double().mean().item() == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / 20_000))
    assert torch.equal(drop_labels(labels, 99, 0.0, torch.Generator()), labels)
    assert (drop_labels(labels, 99, 1.0, torch.Generator()) == 99).all()


@pytest.mark.parametrize("probability", [-0.1, 1.5, math.nan])
def test_an_impossible_dropout_is_refused(probability):
    with pytest.raises(ValueError, match="give a probability"):
        drop_labels(torch.arange(3), 99, probability, torch.Generator())


def test_the_loss_of_v_is_the_squared_error_of_its_definition():
    # Salimans & Ho 2022: v = alpha noise - sigma x0, with alpha^2 = abar and sigma^2 = 1 - abar
    _, x0, _, t, noise, schedule = example()
    abar = column(schedule.alphas_cumprod, t)
    target = abar.sqrt() * noise - (1 - abar).sqrt() * x0
    zero = torch.zeros(len(t), dtype=torch.float64)
    torch.testing.assert_close(v_loss(target, x0, t, noise, schedule), zero)
    loss = v_loss(target + 0.5, x0, t, noise, schedule)
    torch.testing.assert_close(loss, zero + 0.25)
    snr = (abar / (1 - abar)).flatten()
    weighted = v_loss(target + 0.5, x0, t, noise, schedule, min_snr=5.0)
    torch.testing.assert_close(weighted, 0.25 * snr.clamp(max=5.0) / (snr + 1))


def test_v_stands_for_the_noise_that_was_added():
    _, x0, x_t, t, noise, schedule = example()
    abar = column(schedule.alphas_cumprod, t)
    v = abar.sqrt() * noise - (1 - abar).sqrt() * x0
    torch.testing.assert_close(epsilon_from_v(v, x_t, t, schedule), noise)
