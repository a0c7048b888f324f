"""The training objective: noising, L_hybrid with a learned variance, label dropout.

Dimensions: b batch, c latent channels, d = c or 2c output channels, h and w latent rows and columns. `t` are rows of the
schedule. Everything is elementwise and free of data-dependent control flow, so it compiles together with the network.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from smidgen.diffusion.schedule import Schedule, gather

# Half the width of one of 256 grey levels on [-1, 1].
HALF_BIN = 1 / 255


def add_noise(
    schedule: Schedule,
    x0: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) noise (DDPM, equation 4)."""
    signal = gather(schedule.sqrt_alphas_cumprod, t, x0)
    return signal * x0 + gather(schedule.sqrt_one_minus_alphas_cumprod, t, x0) * noise


def hybrid_loss(
    output: Float[Tensor, "b d h w"],
    x0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    schedule: Schedule,
    *,
    vlb_weight: float = 1e-3,
    min_snr: float | None = None,
) -> Float[Tensor, " b"]:
    """L_hybrid = L_simple + vlb_weight * L_vlb for each sample (improved DDPM, Nichol & Dhariwal 2021, equation 16).

    L_simple is the mean squared error of the predicted noise. L_vlb = sum of L_t is estimated from the one drawn step as
    T * L_t, in bits per dimension, and teaches the variance only: the predicted noise is detached in it. With T = 1000
    and the default 0.001 the factor before L_t is exactly 1, that of the released DiT training. Where the output has c
    channels there is no learned variance and no L_vlb.

    min_snr: the gamma of min-SNR weighting (Hang et al. 2023), min(snr, gamma) / snr on L_simple alone; None is weight 1.

    Computed in float32, or in float64 when the output is.

    Raises:
        ValueError: the output has neither c nor 2c channels.
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    output, x0, x_t, noise = (tensor.to(dtype) for tensor in (output, x0, x_t, noise))
    epsilon, v = split_output(output, x0.shape[1])
    loss = (epsilon - noise).square().mean(dim=(1, 2, 3))
    if min_snr is not None:
        # min(snr, gamma) / snr = min(1, gamma / snr)
        inverse_snr = (1 - schedule.alphas_cumprod) / schedule.alphas_cumprod
        loss = loss * gather(inverse_snr * min_snr, t, loss).clamp(max=1)
    if v is None or vlb_weight == 0:
        return loss
    bits = vlb_bits(epsilon.detach(), v, x0, x_t, t, schedule)
    return loss + vlb_weight * schedule.num_steps * bits


def split_output(
    output: Float[Tensor, "b d h w"], num_channels: int
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"] | None]:
    """The network's output as (predicted noise, v); v is None where the variance is not learned.

    Raises:
        ValueError: the output has neither num_channels nor twice as many channels.
    """
    if output.shape[1] == num_channels:
        return output, None
    if output.shape[1] == 2 * num_channels:
        return output[:, :num_channels], output[:, num_channels:]
    raise ValueError(
        f"the network's output has {output.shape[1]} channels for {num_channels} in the data: "
        f"expected {num_channels}, or {2 * num_channels} with a learned variance"
    )


def vlb_bits(
    epsilon: Float[Tensor, "b c h w"],
    v: Float[Tensor, "b c h w"],
    x0: Float[Tensor, "b c h w"],
    x_t: Float[Tensor, "b c h w"],
    t: Int[Tensor, " b"],
    schedule: Schedule,
) -> Float[Tensor, " b"]:
    """One term L_t of the variational bound, in bits per dimension (improved DDPM, equations 4 to 7 and 15).

    t > 0: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)). t = 0: the negative log-likelihood of x_0 under p(x_0 | x_1)
    discretised to 256 levels on [-1, 1]; for latents the levels mean nothing, but this is how released weights were trained.
    v in [-1, 1] runs from the posterior's variance to beta_t in log space, and may leave that range.
    """
    prior_log_variance = gather(schedule.posterior_log_variance_clipped, t, x0)
    log_beta = gather(schedule.log_betas, t, x0)
    log_variance = prior_log_variance + (v + 1) / 2 * (log_beta - prior_log_variance)
    predicted = gather(schedule.sqrt_recip_alphas_cumprod, t, x0) * x_t
    predicted = predicted - gather(schedule.sqrt_recipm1_alphas_cumprod, t, x0) * epsilon
    # Both means share the term in x_t, so that their difference needs x_0 alone; at t = 0 it is x_0 minus the mean.
    difference = gather(schedule.posterior_mean_coef1, t, x0) * (x0 - predicted)
    kl = 0.5 * (
        log_variance
        - prior_log_variance
        - 1
        + torch.exp(prior_log_variance - log_variance)
        + difference.square() * torch.exp(-log_variance)
    )
    nll = discretized_gaussian_nll(x0, difference, log_variance)
    is_first = (t == 0).reshape(-1, 1, 1, 1)
    return torch.where(is_first, nll, kl).mean(dim=(1, 2, 3)) / math.log(2)


def discretized_gaussian_nll(
    x0: Float[Tensor, "b c h w"],
    difference: Float[Tensor, "b c h w"],
    log_variance: Float[Tensor, "b c h w"],
) -> Float[Tensor, "b c h w"]:
    """-log of the Gaussian's mass in the grey level around x_0, in nats (DDPM, equation 13); difference = x_0 - mean.

    The outermost levels reach to infinity. Masses below 1e-12 count as 1e-12.
    """
    inverse_std = torch.exp(-0.5 * log_variance)
    upper = (difference + HALF_BIN) * inverse_std
    lower = (difference - HALF_BIN) * inverse_std
    # By symmetry the mass of [lower, upper] is that of [-upper, -lower]: the tail on the left loses no digits.
    flip = difference > 0
    left = _normal_cdf(torch.where(flip, -lower, upper))
    inner = left - _normal_cdf(torch.where(flip, -upper, lower))
    mass = torch.where(x0 < -0.999, _normal_cdf(upper), inner)
    mass = torch.where(x0 > 0.999, _normal_cdf(-lower), mass)
    return -torch.log(mass.clamp(min=1e-12))


def _normal_cdf(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


def drop_labels(
    labels: Int[Tensor, " b"], null_label: int, probability: float, generator: torch.Generator
) -> Int[Tensor, " b"]:
    """Each label replaced by the null label with this probability (classifier-free guidance, Ho & Salimans 2022).

    One draw per sample, on the generator's device.

    Raises:
        ValueError: probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"a label dropout of {probability}: give a probability, 0 to 1")
    draw = torch.rand(labels.shape, generator=generator, device=generator.device)
    return torch.where((draw < probability).to(labels.device), null_label, labels)
