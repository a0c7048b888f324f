"""Samplers as functions of a callable: ancestral DDPM, DDIM, DPM-Solver++(2M).

Dimensions: b batch, c latent channels, h and w latent rows and columns. A sampler respaces the
schedule, walks it from the last row to the first and returns x_0; it works in the dtype of the
noise it is given (float32 for a reduced-precision network: `denoise` casts). Noise comes from one
generator per sample. No network, no labels: guidance wraps the callable.

With `first` a sampler walks the last so many of its steps alone, and `noise` is x where the first
of them begins. `after` may change x after each step. Gradients flow where PyTorch has them on:
`Process.sample` switches them off unless it is told otherwise.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from smidgen.diffusion.objective import learned_log_variance, predict_x0, split_output
from smidgen.diffusion.schedule import Images, Schedule, Spacing

# (x_t (b, c, h, w), original timesteps (b,) int64) -> (b, c, h, w), or (b, 2c, h, w) with v
Denoise = Callable[[Tensor, Tensor], Tensor]
# (steps done, steps in all), called after each step
Progress = Callable[[int, int], None]
# (x after a step, its t (b,) as the network is told it, None: of noise 0) -> x that goes on
After = Callable[[Tensor, Tensor | None], Tensor]


def ddpm(
    denoise: Denoise,
    noise: Images,
    schedule: Schedule,
    num_steps: int,
    generators: Sequence[torch.Generator],
    *,
    clip: float | None = None,
    spacing: Spacing = "uniform",
    first: int | None = None,
    after: After | None = None,
    progress: Progress | None = None,
) -> Images:
    """Ancestral sampling (DDPM, algorithm 2) with respacing (improved DDPM, section 4).

    The variance is the learned one where the output has 2c channels, else the posterior's. The
    last step returns the mean. clip limits the predicted x_0 to [-clip, clip]; None does not.

    Raises: ValueError if the spacing has no num_steps steps, `first` is more than they or none,
        there is not one generator per sample, or an output has neither c nor 2c channels.
    """
    first = _check(noise, generators, num_steps, first)
    steps = schedule.respace(num_steps, spacing)
    of_x0, of_x = steps.posterior_mean_coef1.tolist(), steps.posterior_mean_coef2.tolist()
    x = noise
    for row in reversed(range(first)):
        predicted = _predict(denoise, x, steps, row)
        x0 = predicted.x0 if clip is None else predicted.x0.clamp(-clip, clip)
        x = of_x0[row] * x0 + of_x[row] * x
        if row > 0:
            std = torch.exp(0.5 * predicted.log_variance)
            x = x + std * draw_noise(x.shape[1:], generators, x.device, x.dtype)
        x = _stepped(x, steps, row, after)
        if progress is not None:
            progress(first - row, first)
    return x


def ddim(
    denoise: Denoise,
    noise: Images,
    schedule: Schedule,
    num_steps: int,
    generators: Sequence[torch.Generator],
    *,
    eta: float = 0.0,
    spacing: Spacing = "uniform",
    first: int | None = None,
    after: After | None = None,
    progress: Progress | None = None,
) -> Images:
    """DDIM (Song et al. 2021, equations 12 and 16); eta 0 is deterministic, 1 is close to DDPM.

    A learned variance is not used. The last step goes to abar = 1.

    Raises: ValueError for eta outside [0, 1], and as `ddpm`.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta {eta}: give 0 (deterministic) to 1")
    first = _check(noise, generators, num_steps, first)
    steps = schedule.respace(num_steps, spacing)
    sigmas = eta * steps.posterior_variance.sqrt()
    directions = (1 - steps.alphas_cumprod_prev - sigmas**2).clamp(min=0).sqrt().tolist()
    signals, sigmas = steps.alphas_cumprod_prev.sqrt().tolist(), sigmas.tolist()
    x = noise
    for row in reversed(range(first)):
        predicted = _predict(denoise, x, steps, row)
        x = signals[row] * predicted.x0 + directions[row] * predicted.epsilon
        if sigmas[row] > 0:
            x = x + sigmas[row] * draw_noise(x.shape[1:], generators, x.device, x.dtype)
        x = _stepped(x, steps, row, after)
        if progress is not None:
            progress(first - row, first)
    return x


def dpm_solver(
    denoise: Denoise,
    noise: Images,
    schedule: Schedule,
    num_steps: int,
    generators: Sequence[torch.Generator],
    *,
    spacing: Spacing = "half-open",
    first: int | None = None,
    after: After | None = None,
    progress: Progress | None = None,
) -> Images:
    """DPM-Solver++(2M), midpoint form (Lu et al. 2022, algorithm 2); deterministic.

    The first step is of first order for want of a history, the last because it goes to noise 0,
    where its result is the predicted x_0. A learned variance is not used; the generators are taken
    only so that all samplers are called alike.

    Raises: ValueError as `ddpm`.
    """
    first = _check(noise, generators, num_steps, first)
    steps = schedule.respace(num_steps, spacing)
    alphas, sigmas = steps.sqrt_alphas_cumprod, steps.sqrt_one_minus_alphas_cumprod
    # widths[i] is the step from row i + 1 to row i in half the log of the signal-to-noise ratio.
    widths = (alphas / sigmas).log().diff().neg().tolist()
    alphas, sigmas = alphas.tolist(), sigmas.tolist()
    x, last_x0 = noise, None
    for row in reversed(range(first)):
        x0 = _predict(denoise, x, steps, row).x0
        if row == 0:
            x = x0
        else:
            target = x0
            if last_x0 is not None:
                target = x0 + 0.5 * (widths[row - 1] / widths[row]) * (x0 - last_x0)
            keep = sigmas[row - 1] / sigmas[row]
            x = keep * x - alphas[row - 1] * math.expm1(-widths[row - 1]) * target
        last_x0 = x0
        x = _stepped(x, steps, row, after)
        if progress is not None:
            progress(first - row, first)
    return x


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm++": dpm_solver}


def draw_noise(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b ..."]:
    """Standard normal noise (len(generators), *shape), sample i from generator i.

    Drawn in float32 on the generators' device (the CPU for `sample_generator`) and then moved, so
    that an image depends neither on its batch, nor on the device, nor on the precision.
    """
    drawn = [torch.randn(*shape, generator=g, device=g.device) for g in generators]
    return torch.stack(drawn).to(device=device, dtype=dtype)


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The CPU generator of sample `index` in the run of this seed.

    torch keeps 32 bits of a CPU seed. Multiples of 2^32 / golden ratio spread the runs over them
    as evenly as multiples can: within a run all samples differ, and the first million samples of
    the runs with seeds 0 to 1000 never share a generator.
    """
    return torch.Generator().manual_seed((seed * 0x9E3779B9 + index) % 2**32)


def _check(
    noise: Tensor, generators: Sequence[torch.Generator], num_steps: int, first: int | None
) -> int:
    """How many steps are walked."""
    if len(generators) != len(noise):
        raise ValueError(f"{len(generators)} generators for {len(noise)} samples: give one each")
    if first is not None and not 1 <= first <= num_steps:
        raise ValueError(f"the last {first} of {num_steps} steps: give 1 to {num_steps}")
    return num_steps if first is None else first


class _Prediction(NamedTuple):
    x0: Tensor
    epsilon: Tensor
    log_variance: Tensor


def _predict(denoise: Denoise, x: Images, steps: Schedule, row: int) -> _Prediction:
    """What the network says of x at this row, in the dtype of x; unlearned variance: posterior."""
    timesteps = torch.full((len(x),), int(steps.timesteps[row]), device=x.device)
    epsilon, v = split_output(denoise(x, timesteps).to(x.dtype), x.shape[1])
    t = torch.full_like(timesteps, row)
    if v is None:
        v = -torch.ones_like(epsilon)
    return _Prediction(predict_x0(epsilon, x, t, steps), epsilon, learned_log_variance(v, t, steps))


def _stepped(x: Images, steps: Schedule, row: int, after: After | None) -> Images:
    """What goes on after the step that began at this row."""
    if after is None:
        return x
    if row == 0:
        return after(x, None)
    return after(x, torch.full((len(x),), int(steps.timesteps[row - 1]), device=x.device))
