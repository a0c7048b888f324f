"""What training draws of a process: its noise levels, and which of them a shift moves."""

import math

import pytest
import torch

from smidgen.diffusion.flow import FlowSchedule
from smidgen.diffusion.process import Diffusion, Flow
from smidgen.diffusion.schedule import Schedule


def test_sigmas_of_training_are_shifted_as_those_of_sampling():
    flow = Flow(schedule=FlowSchedule(shift=3.0), num_tokens=16)
    quantiles = torch.tensor([0.25, 0.5], dtype=torch.float64)
    found = flow.times(quantiles, "uniform")
    torch.testing.assert_close(found, torch.tensor([0.5, 0.75]))  # 3 s / (1 + 2 s)
    told = flow.times(quantiles, "uniform", 1.0)
    torch.testing.assert_close(told, quantiles.float())
    drawn = flow.draw_times(1000, torch.Generator().manual_seed(0))
    odds = drawn / (1 - drawn) / 3.0
    assert abs(odds.log().mean().item()) < 0.1  # the logit is normal: 1000 draws, 3 sigma
    assert abs(odds.log().std().item() - 1) < 0.1


def test_steps_of_a_diffusion_are_uniform_or_of_logit_normal_noise():
    schedule = Schedule.linear()
    diffusion = Diffusion(schedule=schedule)
    quantiles = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert diffusion.times(quantiles).tolist() == [0, 500, 999]
    # at the median as much noise as signal: abar falls below 1/2 there
    middle = int((schedule.alphas_cumprod > 0.5).sum())
    assert diffusion.times(quantiles, "logit-normal").tolist() == [0, middle, 999]
    for shift, mean in ((None, 0.0), (3.0, math.log(3))):
        generator = torch.Generator().manual_seed(0)
        drawn = diffusion.draw_times(4000, generator, "logit-normal", shift)
        abar = schedule.alphas_cumprod[drawn]
        log_ratio = ((1 - abar) / abar).sqrt().log()
        assert abs(log_ratio.mean().item() - mean) < 0.05  # 4000 draws, 3 sigma
        assert abs(log_ratio.std().item() - 1) < 0.05
    even = diffusion.draw_times(4000, torch.Generator().manual_seed(0))
    assert abs(even.double().mean().item() - 499.5) < 14


@pytest.mark.parametrize("prediction", ["hybrid", "epsilon", "v"])
def test_the_samplers_read_noise_whatever_the_network_predicts(prediction):
    generator = torch.Generator().manual_seed(0)
    x0, noise, variance = torch.randn(3, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    process = Diffusion(schedule=Schedule.linear(), prediction=prediction)
    t = torch.tensor([100, 900])
    abar = process.schedule.alphas_cumprod[t].reshape(-1, 1, 1, 1)
    exact = abar.sqrt() * noise - (1 - abar).sqrt() * x0 if prediction == "v" else noise
    x_t = process.noised(x0, t, noise)
    found = process.predicted(torch.cat([exact, variance], dim=1), x_t, t)
    torch.testing.assert_close(found[:, :4], noise)
    assert found.shape[1] == (8 if prediction == "hybrid" else 4)


def test_the_loss_of_an_exact_prediction_is_nothing():
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    flow = Flow(schedule=FlowSchedule(), num_tokens=9)
    sigma = torch.tensor([0.2, 0.9])
    x_t = flow.noised(x0, sigma, noise)
    assert flow.loss(noise - x0, x0, x_t, sigma, noise).tolist() == [0, 0]
    process, t = Diffusion(schedule=Schedule.linear(), prediction="epsilon"), torch.tensor([3, 700])
    assert process.loss(noise, x0, process.noised(x0, t, noise), t, noise).tolist() == [0, 0]


def test_each_process_says_how_it_is_sampled():
    diffusion = Diffusion(schedule=Schedule.linear(100))
    assert (diffusion.most_steps("ddpm"), diffusion.most_steps("dpm++")) == (100, 99)
    assert diffusion.default_sampler in diffusion.samplers
    flow = Flow(schedule=FlowSchedule(), num_tokens=4)
    assert (flow.samplers, flow.most_steps("euler")) == (("euler",), None)


def test_below_a_share_of_noise_sampling_begins_with_it():
    flow = Flow(schedule=FlowSchedule(shift=3.0, terminal=0.02), num_tokens=16)
    times = flow.below(0.3, 5).sampled_times("euler", 5)
    assert len(times) == 5
    assert times[0].item() == pytest.approx(0.3)
    assert (times.diff() < 0).all()

    diffusion = Diffusion(schedule=Schedule.linear())
    abar = diffusion.schedule.alphas_cumprod
    shares = (1 - abar).sqrt() / (abar.sqrt() + (1 - abar).sqrt())
    below = diffusion.below(0.3, 5)
    for sampler in below.samplers:
        times = below.sampled_times(sampler, 5)
        assert shares[times[0] - 1] < 0.3 <= shares[times[0]]
        assert (times.diff() < 0).all()
    # two rows at least, which is what every sampler can walk
    assert diffusion.below(1e-6, 1).most_steps("dpm++") == 1


@pytest.mark.parametrize(
    ("process", "sampler"),
    [
        (Diffusion(schedule=Schedule.linear()), "ddim"),
        (Flow(schedule=FlowSchedule(shift=3.0), num_tokens=16), "euler"),
    ],
)
def test_the_last_steps_are_those_at_which_all_end(process, sampler):
    every = process.sampled_times(sampler, 8)
    last = process.sampled_times(sampler, 8, 3)
    assert torch.equal(last, every[-3:])
    called, told = [], []

    def denoise(x, t):
        called.append(t[0].item())
        return torch.zeros_like(x)

    def after(x, t):
        told.append(None if t is None else t[0].item())
        return x

    noise, generators = torch.zeros(1, 4, 2, 2), [torch.Generator()]
    process.sample(denoise, noise, generators, sampler=sampler, steps=8, first=3, after=after)
    assert called == last.tolist()
    assert told == [*called[1:], None]
