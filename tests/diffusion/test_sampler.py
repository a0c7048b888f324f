"""Whole trajectories against diffusers' schedulers, and what must hold for every sampler."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_ddpm

from smidgen.diffusion.sampler import (
    SAMPLERS,
    ddim,
    ddpm,
    dpm_solver,
    draw_noise,
    sample_generator,
)
from smidgen.diffusion.schedule import Schedule

SHAPE = (4, 3, 5)
SCHEDULE = Schedule.linear()
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def generators(count=2, seed=0, first=0):
    return [sample_generator(seed, first + i) for i in range(count)]


def start(gens, dtype=torch.float64):
    return draw_noise(SHAPE, gens, dtype=dtype)


def from_x0(x0, x, t):
    abar = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1).to(x.dtype)
    return (x - abar.sqrt() * x0) / (1 - abar).sqrt()


def bent(x, t):
    """A noise prediction that is not linear in x and not constant in t; no learned variance."""
    phase = 0.3 * torch.cos(t.to(x.dtype) / 100).reshape(-1, 1, 1, 1)
    return from_x0(torch.tanh(1.5 * x + phase), x, t)


def bent_with_variance(x, t):
    return torch.cat([bent(x, t), torch.sin(3 * x) + 0.1], dim=1)


def gaussian(std):
    """The exact noise prediction and reverse variance of data N(0, std^2) on 1000 steps."""

    def denoise(x, t):
        abar = SCHEDULE.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return from_x0(abar.sqrt() * std**2 * x / (abar * std**2 + 1 - abar), x, t)

    return denoise


def in_float64(scheduler):
    """diffusers' formulas on float64 tables: its own are rounded to float32."""
    scheduler.betas = SCHEDULE.betas
    scheduler.alphas = 1 - SCHEDULE.betas
    scheduler.alphas_cumprod = torch.cumprod(1 - SCHEDULE.betas, 0)
    scheduler.one = scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def walk(scheduler, denoise, x, **step):
    for t in scheduler.timesteps:
        output = denoise(x, t.expand(len(x)))
        arguments = {name: value() for name, value in step.items()}
        x = scheduler.step(output, t, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("num_steps", [7, 50, 250])
@pytest.mark.parametrize(
    ("denoise", "variance_type"),
    [(bent_with_variance, "learned_range"), (bent, "fixed_small_log")],
)
def test_ddpm_follows_diffusers(monkeypatch, num_steps, denoise, variance_type):
    theirs, ours = generators(), generators()
    scheduler = DDPMScheduler(variance_type=variance_type, clip_sample=False, **LINEAR)
    in_float64(scheduler).set_timesteps(
        timesteps=SCHEDULE.respace(num_steps).timesteps.flip(0).tolist()
    )
    monkeypatch.setattr(
        scheduling_ddpm,
        "randn_tensor",
        lambda shape, **_: draw_noise(shape[1:], theirs, dtype=torch.float64),
    )
    expected = walk(scheduler, denoise, start(theirs))
    result = ddpm(denoise, start(ours), SCHEDULE, num_steps, ours)
    assert torch.allclose(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("num_steps", [10, 50])
def test_ddim_follows_diffusers(num_steps, eta):
    theirs, ours = generators(), generators()
    # Its previous step is always 1000 // num_steps back, which is our "ddim" spacing.
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="leading", **LINEAR)
    in_float64(scheduler).set_timesteps(num_steps)
    noises = (draw_noise(SHAPE, theirs, dtype=torch.float64) for _ in iter(int, 1))
    x = next(noises)
    expected = walk(scheduler, bent, x, eta=lambda: eta, variance_noise=lambda: next(noises))
    result = ddim(bent, start(ours), SCHEDULE, num_steps, ours, eta=eta, spacing="ddim")
    assert torch.allclose(result, expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers' own
@pytest.mark.parametrize("num_steps", [1, 2, 8, 20, 50])
def test_dpm_solver_follows_diffusers(num_steps):
    gens = generators()
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        lower_order_final=True,
        timestep_spacing="linspace",
        **LINEAR,
    )
    scheduler.set_timesteps(num_steps)
    assert scheduler.timesteps.flip(0).tolist() == (
        SCHEDULE.respace(num_steps, "half-open").timesteps.tolist()
    )
    abar = torch.cumprod(1 - SCHEDULE.betas, 0)[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1 - abar) / abar).sqrt(), abar.new_zeros(1)])
    x = start(gens)
    expected = walk(scheduler, bent, x)
    result = dpm_solver(bent_with_variance, x, SCHEDULE, num_steps, gens)
    assert torch.allclose(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 3, 20])
def test_data_of_one_point_are_reached(name, num_steps):
    gens = generators()
    point = torch.linspace(-2, 2, 60, dtype=torch.float64).reshape(SHAPE)
    result = SAMPLERS[name](
        lambda x, t: from_x0(point, x, t), start(gens), SCHEDULE, num_steps, gens
    )
    assert torch.allclose(result, point.expand_as(result), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpm++", 2)])
def test_the_error_of_a_deterministic_sampler_falls_with_its_order(name, order):
    # The exact flow of data N(0, std^2) only scales: noise of variance abar std^2 + 1 - abar at
    # the first step becomes data of variance std^2. Noise 1 there is 1 to 1e-5.
    std, gens = 0.5, generators(1)
    noise = start(gens)

    def error(num_steps):
        result = SAMPLERS[name](gaussian(std), noise, SCHEDULE, num_steps, gens)
        return (result - std * noise).abs().mean().item()

    assert error(100) < error(25) / 4 ** (0.7 * order)


def test_ancestral_sampling_has_the_variance_of_gaussian_data():
    # 1000 steps, where the posterior's variance is almost the exact one: sampling error of a
    # standard deviation over 10,000 values 0.7 %, four times that is allowed.
    std, gens = 0.5, generators(1)
    noise = draw_noise((4, 50, 50), gens, dtype=torch.float64)
    result = ddpm(gaussian(std), noise, SCHEDULE, 1000, gens)
    assert result.std().item() == pytest.approx(std, rel=0.028)


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("ddim", {"eta": 0.5}), ("dpm++", {})])
def test_an_image_does_not_depend_on_its_batch(name, options):
    sampler = SAMPLERS[name]
    gens = generators(5)
    together = sampler(bent_with_variance, start(gens), SCHEDULE, 6, gens, **options)
    for i in range(5):
        gens = generators(1, first=i)
        alone = sampler(bent_with_variance, start(gens), SCHEDULE, 6, gens, **options)
        assert torch.allclose(alone[0], together[i], rtol=0, atol=1e-12)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_noise_is_the_same_at_every_precision():
    double = draw_noise(SHAPE, generators(), dtype=torch.float64)
    assert torch.equal(double, draw_noise(SHAPE, generators()).double())
    half = draw_noise(SHAPE, generators(), dtype=torch.bfloat16)
    assert torch.equal(half, double.float().bfloat16())


def test_generators_differ_by_seed_and_by_index():
    draws = [start(generators(1, seed, index)) for seed in (0, 1, 2, -1) for index in (0, 1, 2)]
    for i, a in enumerate(draws):
        assert all((a - b).abs().max() > 0.1 for b in draws[:i])
    assert torch.equal(draws[1], start(generators(1, seed=0, first=1)))


def test_ddpm_without_learned_variance_uses_the_posterior():
    def lowest(x, t):
        return torch.cat([bent(x, t), -torch.ones_like(x)], dim=1)

    first, second = generators(), generators()
    plain = ddpm(bent, start(first), SCHEDULE, 12, first)
    assert torch.equal(plain, ddpm(lowest, start(second), SCHEDULE, 12, second))


def test_clipping_bounds_the_result():
    gens = generators()
    result = ddpm(bent, start(gens), SCHEDULE, 12, gens, clip=0.2)
    assert result.abs().max().item() == pytest.approx(0.2, rel=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
def test_progress_counts_every_step_and_the_network_sees_original_timesteps(name):
    gens, counted, seen = generators(), [], []

    def denoise(x, t):
        seen.append(t)
        return bent(x, t)

    SAMPLERS[name](
        denoise, start(gens), SCHEDULE, 5, gens, progress=lambda *done: counted.append(done)
    )
    spacing = "half-open" if name == "dpm++" else "uniform"
    assert counted == [(i, 5) for i in range(1, 6)]
    expected = SCHEDULE.respace(5, spacing).timesteps.flip(0)
    assert torch.equal(torch.stack(seen), expected[:, None].expand(5, 2))


@pytest.mark.parametrize("name", SAMPLERS)
def test_misuse_is_refused(name):
    gens = generators()
    with pytest.raises(ValueError, match="2 generators for 1 samples"):
        SAMPLERS[name](bent, start(gens)[:1], SCHEDULE, 5, gens)
    with pytest.raises(ValueError, match="give 1 to"):
        SAMPLERS[name](bent, start(gens), SCHEDULE, 0, gens)
    with pytest.raises(ValueError, match="has 3 channels for 4"):
        SAMPLERS[name](lambda x, t: bent(x, t)[:, :3], start(gens), SCHEDULE, 5, gens)


def test_an_impossible_eta_is_refused():
    gens = generators()
    with pytest.raises(ValueError, match="give 0"):
        ddim(bent, start(gens), SCHEDULE, 5, gens, eta=1.5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_steps_alone_go_on_where_the_others_end(name):
    # from the exact x_t of one point every sampler reaches it, and calls the last rows alone
    gens = generators()
    point = torch.linspace(-2, 2, 60, dtype=torch.float64).reshape(SHAPE)
    seen = []

    def denoise(x, t):
        seen.append(int(t[0]))
        return from_x0(point, x, t)

    SAMPLERS[name](denoise, start(gens), SCHEDULE, 10, gens)
    rows, abar, noise = seen.copy(), SCHEDULE.alphas_cumprod[seen[-4]], start(gens)
    seen.clear()
    x = abar.sqrt() * point + (1 - abar).sqrt() * noise
    result = SAMPLERS[name](denoise, x, SCHEDULE, 10, gens, first=4)
    assert seen == rows[-4:]
    assert torch.allclose(result, point.expand_as(result), rtol=0, atol=1e-9)
    for first in (0, 11):
        with pytest.raises(ValueError, match="give 1 to 10"):
            SAMPLERS[name](denoise, x, SCHEDULE, 10, gens, first=first)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_acts_between_steps_gets_x_and_the_t_of_the_next(name):
    gens, called, told = generators(), [], []

    def denoise(x, t):
        called.append((x, int(t[0])))
        return bent(x, t)

    def after(x, t):
        told.append((x + 1, None if t is None else int(t[0])))
        return x + 1

    result = SAMPLERS[name](denoise, start(gens), SCHEDULE, 5, gens, after=after)
    assert [t for _, t in told] == [*(t for _, t in called[1:]), None]
    for (given, _), (found, _) in zip(told, called[1:], strict=False):
        assert torch.equal(given, found)
    assert torch.equal(result, told[-1][0])
