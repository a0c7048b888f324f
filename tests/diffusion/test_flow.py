"""Flow matching against its formulas, scipy, and the schedulers and shifts of diffusers."""

import math

import numpy as np
import pytest
import torch

from smidgen.diffusion.flow import (
    FlowSchedule,
    euler,
    flow_loss,
    interpolate,
    shift_by_tokens,
    shift_by_tokens_and_steps,
    shift_sigmas,
    sigmas_at,
)


def example():
    generator = torch.Generator().manual_seed(0)
    x0, noise, error = torch.randn(3, 5, 4, 3, 2, generator=generator, dtype=torch.float64)
    return x0, noise, error, torch.tensor([0.1, 0.25, 0.5, 0.75, 1.0])


def test_the_path_is_straight_from_data_to_noise():
    x0, noise, _, sigma = example()
    x_t = interpolate(x0, sigma, noise)
    for number, share in enumerate(sigma.tolist()):
        expected = (1 - share) * x0[number] + share * noise[number]
        torch.testing.assert_close(x_t[number], expected)
    assert torch.equal(x_t[-1], noise[-1])


def test_the_loss_is_the_squared_error_of_the_velocity():
    x0, noise, error, _ = example()
    assert torch.equal(flow_loss(noise - x0, x0, noise), torch.zeros(5, dtype=torch.float64))
    loss = flow_loss(noise - x0 + error, x0, noise)
    torch.testing.assert_close(loss, (error**2).mean(dim=(1, 2, 3)))
    assert flow_loss((noise - x0).bfloat16(), x0, noise).dtype == torch.float32


@pytest.mark.parametrize("sampling", ["logit-normal", "uniform"])
def test_sigmas_are_distributed_as_named(sampling):
    stats = pytest.importorskip("scipy.stats")
    quantiles = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    sigmas = sigmas_at(quantiles, sampling).double().numpy()
    logits = np.log(sigmas / (1 - sigmas))
    expected = stats.norm.cdf(logits) if sampling == "logit-normal" else sigmas
    np.testing.assert_allclose(expected, quantiles.numpy(), atol=1e-6)
    ends = sigmas_at(torch.tensor([0.0, 1.0], dtype=torch.float64), sampling)
    assert bool((ends > 0).all())
    assert bool((ends <= 1).all())


def scheduler(**options):
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


@pytest.mark.parametrize("num_steps", [1, 4, 28])
def test_sigmas_are_those_of_the_schedulers(num_steps):
    fractions = np.linspace(1.0, 1 / num_steps, num_steps)
    tokens = 1024

    stock = scheduler(shift=3.0)
    stock.set_timesteps(num_steps)  # as Stable Diffusion 3 does
    last = 3.0 * 0.001 / (1 + 2.0 * 0.001)
    ours = FlowSchedule(shift=3.0, last=last).sigmas(num_steps, tokens)
    torch.testing.assert_close(ours.float(), stock.sigmas, rtol=0, atol=1e-6)

    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    stock = scheduler(use_dynamic_shifting=True)
    stock.set_timesteps(sigmas=fractions, mu=calculate_shift(tokens))
    ours = FlowSchedule(shift=shift_by_tokens()).sigmas(num_steps, tokens)
    torch.testing.assert_close(ours.float(), stock.sigmas, rtol=0, atol=1e-6)

    if num_steps > 1:  # a single step cannot both begin at 1 and end at the terminal
        line = {"tokens": (256, 8192), "values": (0.5, 0.9)}
        stock = scheduler(use_dynamic_shifting=True, shift_terminal=0.02)
        stock.set_timesteps(sigmas=fractions, mu=calculate_shift(tokens, 256, 8192, 0.5, 0.9))
        schedule = FlowSchedule(shift=shift_by_tokens(**line), terminal=0.02)
        ours = schedule.sigmas(num_steps, tokens)
        torch.testing.assert_close(ours.float(), stock.sigmas, rtol=0, atol=1e-6)

    from diffusers import DPMSolverMultistepScheduler

    stock = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    stock.set_timesteps(num_steps)  # as Sana does
    ours = FlowSchedule(shift=3.0, first=0.999).sigmas(num_steps, tokens)
    torch.testing.assert_close(ours.float(), stock.sigmas, rtol=0, atol=1e-6)


def test_a_single_step_begins_at_noise_whatever_the_terminal():
    assert FlowSchedule(shift=3.0, terminal=0.02).sigmas(1, 1024).tolist() == [1, 0]


@pytest.mark.parametrize(("tokens", "steps"), [(1024, 50), (4096, 4), (5000, 50)])
def test_the_fitted_shift_is_that_of_the_pipeline(tokens, steps):
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    expected = math.exp(compute_empirical_mu(tokens, steps))
    assert shift_by_tokens_and_steps(tokens, steps) == pytest.approx(expected, rel=1e-9)


def test_shifting_multiplies_the_odds():
    sigma = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    shifted = shift_sigmas(sigma, 3.0)
    torch.testing.assert_close(shifted / (1 - shifted), 3.0 * sigma / (1 - sigma))


def test_euler_follows_a_straight_flow_exactly_and_a_curved_one_step_by_step():
    x0, noise, _, _ = example()
    sigmas = FlowSchedule(shift=2.0).sigmas(5, 100)
    seen = []
    found = euler(lambda x, s: noise - x0, noise, sigmas, progress=lambda *done: seen.append(done))
    torch.testing.assert_close(found, x0)
    assert seen == [(number, 5) for number in range(1, 6)]

    x = noise
    for number in range(5):
        velocity = x * sigmas[number].float()
        x = x + (sigmas[number + 1] - sigmas[number]) * velocity
    found = euler(lambda x, s: x * s.reshape(-1, 1, 1, 1), noise, sigmas)
    torch.testing.assert_close(found, x)
    with pytest.raises(ValueError, match="at least 1"):
        FlowSchedule().sigmas(0, 1)
