"""Flow matching: the straight path from data to noise, its loss, its sigmas and the Euler sampler.

Dimensions: b batch, c latent channels, h and w latent rows and columns. sigma is in (0, 1]: 1 is
noise. A model is asked for the velocity, noise - x_0, at x_t and sigma (b,).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from smidgen.diffusion.sampler import After, Denoise, Progress
from smidgen.diffusion.schedule import Images, PerImage

TimestepSampling = Literal["logit-normal", "uniform"]
# (tokens of an image, sampling steps) -> the factor of `shift_sigmas`
Shift = Callable[[int, int], float]


def interpolate(x0: Images, sigma: PerImage, noise: Images) -> Images:
    """x_t = (1 - sigma) x_0 + sigma noise (rectified flow; Esser et al. 2024, equation 13)."""
    share = sigma.to(x0.dtype).reshape(-1, 1, 1, 1)
    return (1 - share) * x0 + share * noise


def flow_loss(output: Images, x0: Images, noise: Images) -> PerImage:
    """Mean squared error of the predicted velocity, noise - x_0, of each sample (conditional flow
    matching, Lipman et al. 2023, equation 23). In float32, or in float64 when the output is.
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    target = noise.to(dtype) - x0.to(dtype)
    return (output.to(dtype) - target).square().mean(dim=(1, 2, 3))


def sigmas_at(quantiles: Float64[Tensor, " b"], sampling: TimestepSampling) -> PerImage:
    """The sigmas, in float32, that lie at these quantiles (0 to 1) of what training draws.

    "logit-normal": sigmoid(n), n ~ N(0, 1) (Esser et al. 2024, section 3.1); "uniform": on (0, 1].
    """
    # neither end: the normal's quantile is infinite there
    inside = quantiles.clamp(2.0**-53, 1 - 2.0**-53)
    if sampling == "uniform":
        return inside.float()
    return torch.special.ndtri(inside).sigmoid().float()


def shift_sigmas(sigmas: Float[Tensor, " n"], factor: float) -> Float[Tensor, " n"]:
    """a s / (1 + (a - 1) s): more noise for larger images (Esser et al. 2024, equation 23)."""
    return factor * sigmas / (1 + (factor - 1) * sigmas)


def unshift_sigma(sigma: float, factor: float) -> float:
    """The sigma that `shift_sigmas` turns into this one."""
    return sigma / (factor - (factor - 1) * sigma)


@dataclass(frozen=True, kw_only=True)
class FlowSchedule:
    """Which sigmas a model was made for.

    `shift` is the factor of `shift_sigmas`, or says it for an image. Sampling walks from `first` to
    `last` in even steps (None: to the n-th part of `first` in n steps), which are then shifted, and
    with `terminal` stretched so that the last one is that; a single step is at `first` only.
    """

    shift: float | Shift = 1.0
    first: float = 1.0
    last: float | None = None
    terminal: float | None = None

    def factor(self, num_tokens: int, num_steps: int) -> float:
        """The shift of images of so many tokens, sampled in so many steps."""
        return self.shift(num_tokens, num_steps) if callable(self.shift) else self.shift

    def below(self, sigma: float, num_steps: int, num_tokens: int) -> FlowSchedule:
        """The schedule whose num_steps steps begin at this sigma."""
        first = unshift_sigma(sigma, self.factor(num_tokens, num_steps))
        return replace(self, first=first, last=None, terminal=None)

    def sigmas(self, num_steps: int, num_tokens: int) -> Float64[Tensor, " n"]:
        """The sigmas of num_steps steps from noise to data and, last of all, 0.

        Raises: ValueError if num_steps < 1.
        """
        if num_steps < 1:
            raise ValueError(f"{num_steps} sampling steps: give at least 1")
        last = self.first / num_steps if self.last is None else self.last
        even = torch.linspace(self.first, last, num_steps, dtype=torch.float64)
        sigmas = shift_sigmas(even, self.factor(num_tokens, num_steps))
        if self.terminal is not None and num_steps > 1:
            sigmas = 1 - (1 - sigmas) * ((1 - self.terminal) / (1 - sigmas[-1]))
        return torch.cat([sigmas, sigmas.new_zeros(1)])


def shift_by_tokens(
    *,
    tokens: tuple[int, int] = (256, 4096),
    values: tuple[float, float] = (0.5, 1.15),
    exponential: bool = True,
) -> Shift:
    """The shift of FLUX.1: on a line through two numbers of tokens and their values, which are
    logarithms of the factor if `exponential`.
    """
    slope = (values[1] - values[0]) / (tokens[1] - tokens[0])

    def shift(num_tokens: int, num_steps: int) -> float:
        value = values[0] + slope * (num_tokens - tokens[0])
        return math.exp(value) if exponential else value

    return shift


def shift_by_tokens_and_steps(num_tokens: int, num_steps: int) -> float:
    """The shift of FLUX.2, fitted by its authors to samples in 10 and in 200 steps."""
    many = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return math.exp(many)
    few = 8.73809524e-05 * num_tokens + 1.89833333
    return math.exp(many + (many - few) / 190 * (num_steps - 200))


def euler(
    denoise: Denoise,
    noise: Images,
    sigmas: Float64[Tensor, " n"],
    *,
    after: After | None = None,
    progress: Progress | None = None,
) -> Images:
    """Euler's method along the flow: x + (sigma' - sigma) velocity, from noise at the first of the
    sigmas to the last; deterministic. Works in the dtype of the noise. `after` may change x after
    each step.
    """
    x, steps = noise, sigmas.tolist()
    for number, (sigma, following) in enumerate(itertools.pairwise(steps), start=1):
        at = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        x = x + (following - sigma) * denoise(x, at).to(x.dtype)
        if after is not None:
            x = after(x, torch.full_like(at, following) if following > 0 else None)
        if progress is not None:
            progress(number, len(steps) - 1)
    return x
