"""The noise schedule: every table of the forward process, and respacing to fewer steps.

Dimensions: t diffusion steps, b batch. All tables are float64 on the CPU; `gather` reads them at
the precision and on the device of the data. No network, no sampling.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

# latents, what a network makes of them, and a number or an index for each
Images = Float[Tensor, "b c h w"]
Output = Float[Tensor, "b d h w"]
PerImage = Float[Tensor, " b"]
Indices = Int[Tensor, " b"]

LEAST_LEFT = 1e-30  # of abar at the last step: ratios of it must be numbers

Spacing = Literal["uniform", "ddim", "half-open"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Schedule:
    """The forward process q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I) (Ho et al. 2020).

    Row i is step i + 1 of the paper; abar is `alphas_cumprod`. `timesteps` holds what the network
    is told at row i: i itself for the schedule of training, the original step for a respaced one.
    `posterior_*` belong to q(x_{t-1} | x_t, x_0) (equations 6 and 7).
    """

    betas: Float64[Tensor, " t"]
    alphas_cumprod: Float64[Tensor, " t"]
    alphas_cumprod_prev: Float64[Tensor, " t"]
    sqrt_alphas_cumprod: Float64[Tensor, " t"]
    sqrt_one_minus_alphas_cumprod: Float64[Tensor, " t"]
    sqrt_recip_alphas_cumprod: Float64[Tensor, " t"]
    sqrt_recipm1_alphas_cumprod: Float64[Tensor, " t"]
    log_betas: Float64[Tensor, " t"]
    posterior_variance: Float64[Tensor, " t"]
    posterior_log_variance_clipped: Float64[Tensor, " t"]
    posterior_mean_coef1: Float64[Tensor, " t"]
    posterior_mean_coef2: Float64[Tensor, " t"]
    timesteps: Int64[Tensor, " t"]

    @staticmethod
    def linear(
        num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> "Schedule":
        """Betas evenly spaced from beta_start to beta_end (DDPM, section 4; defaults: DiT's).

        Raises: ValueError if num_steps < 1, or for a beta outside (0, 1).
        """
        if num_steps < 1:
            raise ValueError(f"a schedule of {num_steps} steps: give at least 1")
        return Schedule.from_betas(
            torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        )

    @staticmethod
    def from_betas(
        betas: Float[Tensor, " t"], timesteps: Int[Tensor, " t"] | None = None
    ) -> "Schedule":
        """Every table from the betas; timesteps None means 0 ... T - 1.

        Raises: ValueError for a beta outside (0, 1), NaN included, or so many or large ones that
            nothing of an image is left.
        """
        betas = betas.detach().to("cpu", torch.float64)
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("every beta must lie strictly between 0 and 1")
        if timesteps is None:
            timesteps = torch.arange(len(betas))
        cumprod = torch.cumprod(1 - betas, dim=0)
        if bool((cumprod < LEAST_LEFT).any()):
            raise ValueError("these betas leave nothing of an image: lower them, or their number")
        previous = _shift(cumprod)
        variance = betas * (1 - previous) / (1 - cumprod)
        # The first posterior variance is 0 (x_0 is known), which has no logarithm: improved DDPM
        # puts the second in its place.
        clipped = torch.cat([variance[1:2], variance[1:]]) if len(betas) > 1 else betas
        return Schedule(
            betas=betas,
            alphas_cumprod=cumprod,
            alphas_cumprod_prev=previous,
            sqrt_alphas_cumprod=cumprod.sqrt(),
            sqrt_one_minus_alphas_cumprod=(1 - cumprod).sqrt(),
            sqrt_recip_alphas_cumprod=(1 / cumprod).sqrt(),
            sqrt_recipm1_alphas_cumprod=(1 / cumprod - 1).sqrt(),
            log_betas=betas.log(),
            posterior_variance=variance,
            posterior_log_variance_clipped=clipped.log(),
            posterior_mean_coef1=betas * previous.sqrt() / (1 - cumprod),
            posterior_mean_coef2=(1 - previous) * (1 - betas).sqrt() / (1 - cumprod),
            timesteps=timesteps.detach().to("cpu", torch.int64),
        )

    @property
    def num_steps(self) -> int:
        """Rows of every table."""
        return len(self.betas)

    def rows_at(self, sigmas: PerImage) -> Int64[Tensor, " b"]:
        """The first row with at least this share of noise, sigma in (0, 1]; else the last row.

        The share is sqrt(1 - abar) / (sqrt(abar) + sqrt(1 - abar)), as in a flow's (1 - sigma) x_0
        + sigma noise: equal sigmas have equal signal-to-noise ratios there and here.
        """
        noise = self.sqrt_one_minus_alphas_cumprod
        shares = noise / (self.sqrt_alphas_cumprod + noise)
        rows = torch.searchsorted(shares, sigmas.to("cpu", torch.float64))
        return rows.clamp(max=self.num_steps - 1)

    def below(self, sigma: float) -> "Schedule":
        """The steps up to the first row with at least this share of noise, as in `rows_at`; two of
        them at least.
        """
        last = int(self.rows_at(torch.tensor([sigma]))[0])
        kept = max(2, last + 1)
        return Schedule.from_betas(self.betas[:kept], self.timesteps[:kept])

    def respace(self, num_steps: int, spacing: Spacing = "uniform") -> "Schedule":
        """The schedule of num_steps of the steps, its abar theirs (improved DDPM, section 4).

        `spaced_indices` explains the spacings. `timesteps` keeps the original steps for the
        network.

        Raises: ValueError if the spacing has no such number of steps.
        """
        indices = torch.tensor(spaced_indices(self.num_steps, num_steps, spacing))
        cumprod = self.alphas_cumprod[indices]
        return Schedule.from_betas(1 - cumprod / _shift(cumprod), self.timesteps[indices])


def _shift(cumprod: Float64[Tensor, " t"]) -> Float64[Tensor, " t"]:
    return torch.cat([torch.ones(1, dtype=cumprod.dtype), cumprod[:-1]])


def spaced_indices(total: int, num_steps: int, spacing: Spacing = "uniform") -> list[int]:
    """num_steps increasing indices below total.

    uniform: evenly from 0 to total - 1, both included: the rule of the released ADM and DiT
        samplers ("250"), but a single step is total - 1, where the noise is, instead of 0.
    ddim: multiples of the smallest stride that gives exactly num_steps (their "ddim50").
    half-open: the num_steps + 1 even points from 0 to total - 1, without 0: num_steps intervals,
        each evaluated at its noisy end.

    Raises: ValueError for num_steps outside 1 ... total, or if the spacing cannot give that many.
    """
    if not 1 <= num_steps <= total:
        raise ValueError(f"{num_steps} sampling steps of {total}: give 1 to {total}")
    if spacing == "uniform":
        if num_steps == 1:
            return [total - 1]
        stride, position, indices = (total - 1) / (num_steps - 1), 0.0, []
        # Added up, not multiplied: halves then round as in the released samplers.
        for _ in range(num_steps):
            indices.append(round(position))
            position += stride
        return indices
    if spacing == "ddim":
        for stride in range(1, total + 1):
            if len(range(0, total, stride)) == num_steps:
                return list(range(0, total, stride))
        raise ValueError(
            f'no whole stride visits exactly {num_steps} of {total} steps: use spacing "uniform"'
        )
    if spacing == "half-open":
        if num_steps == total:
            raise ValueError(f"{num_steps} half-open steps of {total}: give 1 to {total - 1}")
        stride = (total - 1) / num_steps
        return [round(i * stride) for i in range(1, num_steps + 1)]
    raise ValueError(f"unknown spacing {spacing!r}: use uniform, ddim or half-open")


def gather(
    table: Float64[Tensor, " t"], index: Indices, like: Float[Tensor, "b ..."]
) -> Float[Tensor, "b ..."]:
    """table[index] in the dtype and on the device of `like`, as (b, 1, ..., 1) to broadcast."""
    # Cast before moving: not every device has float64.
    values = table.to(like.dtype).to(like.device)[index]
    return values.reshape(-1, *([1] * (like.ndim - 1)))
