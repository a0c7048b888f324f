"""The training objectives: noising, L_hybrid with a learned variance, v, label dropout.

Dimensions: b batch, c latent channels, d = c or 2c output channels, h and w latent rows and
columns; t counts rows of the schedule. Everything is elementwise and free of data-dependent control
flow, so it compiles together with the network. The samplers read the network through the same
functions.
"""

import math

import torch

from smidgen.diffusion.schedule import Images, Indices, Output, PerImage, Schedule, gather

# Half the width of one of 256 levels on [-1, 1].
HALF_LEVEL = 1 / 255


def add_noise(schedule: Schedule, x0: Images, t: Indices, noise: Images) -> Images:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (DDPM, equation 4)."""
    signal = gather(schedule.sqrt_alphas_cumprod, t, x0)
    return signal * x0 + gather(schedule.sqrt_one_minus_alphas_cumprod, t, x0) * noise


def hybrid_loss(
    output: Output,
    x0: Images,
    x_t: Images,
    t: Indices,
    noise: Images,
    schedule: Schedule,
    *,
    vlb_weight: float = 1e-3,
    min_snr: float | None = None,
) -> PerImage:
    """L_simple + vlb_weight * L_vlb of each sample (improved DDPM, Nichol & Dhariwal 2021, eq. 16).

    L_simple is the mean squared error of the predicted noise. L_vlb, the sum of all T terms, is
    estimated from the drawn one as T * L_t, in bits per dimension; it teaches the variance only,
    for the predicted noise is detached in it. With T = 1000 the default 0.001 puts a factor of
    exactly 1 before L_t, as does the released DiT training. An output of c channels has no learned
    variance and no L_vlb.

    min_snr is gamma of min-SNR weighting (Hang et al. 2023): min(snr, gamma) / snr on L_simple
    alone; None weighs every step 1. Computed in float32, or in float64 when the output is.

    Raises: ValueError if the output has neither c nor 2c channels.
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    output, x0, x_t, noise = (tensor.to(dtype) for tensor in (output, x0, x_t, noise))
    epsilon, v = split_output(output, x0.shape[1])
    loss = (epsilon - noise).square().mean(dim=(1, 2, 3))
    if min_snr is not None:
        inverse_snr = (1 - schedule.alphas_cumprod) / schedule.alphas_cumprod
        # min(snr, gamma) / snr = min(1, gamma / snr)
        loss = loss * gather(inverse_snr * min_snr, t, loss).clamp(max=1)
    if v is None or vlb_weight == 0:
        return loss
    bits = vlb_bits(epsilon.detach(), v, x0, x_t, t, schedule)
    return loss + vlb_weight * schedule.num_steps * bits


def v_loss(
    output: Images,
    x0: Images,
    t: Indices,
    noise: Images,
    schedule: Schedule,
    *,
    min_snr: float | None = None,
) -> PerImage:
    """Mean squared error of the predicted v = sqrt(abar) noise - sqrt(1 - abar) x_0 of each sample
    (Salimans & Ho 2022, section 4).

    min_snr is gamma of min-SNR weighting, for v min(snr, gamma) / (snr + 1) (Hang et al. 2023,
    section 3.4); None weighs every step 1. In float32, or in float64 when the output is.
    """
    dtype = torch.promote_types(output.dtype, torch.float32)
    output, x0, noise = (tensor.to(dtype) for tensor in (output, x0, noise))
    signal = gather(schedule.sqrt_alphas_cumprod, t, x0)
    target = signal * noise - gather(schedule.sqrt_one_minus_alphas_cumprod, t, x0) * x0
    loss = (output - target).square().mean(dim=(1, 2, 3))
    if min_snr is None:
        return loss
    # 1 / (snr + 1) = 1 - abar, snr / (snr + 1) = abar
    abar = schedule.alphas_cumprod
    return loss * gather(torch.minimum(abar, min_snr * (1 - abar)), t, loss)


def epsilon_from_v(v: Images, x_t: Images, t: Indices, schedule: Schedule) -> Images:
    """The noise in x_t that a predicted v stands for: sqrt(abar) v + sqrt(1 - abar) x_t (Salimans &
    Ho 2022, appendix D).
    """
    signal = gather(schedule.sqrt_alphas_cumprod, t, x_t)
    return signal * v + gather(schedule.sqrt_one_minus_alphas_cumprod, t, x_t) * x_t


def vlb_bits(
    epsilon: Images, v: Images, x0: Images, x_t: Images, t: Indices, schedule: Schedule
) -> PerImage:
    """One term L_t of the variational bound, in bits per dimension (improved DDPM, eq. 4 to 7).

    t > 0: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)). t = 0: -log p(x_0 | x_1), discretised to
    256 levels on [-1, 1]; latents have no such levels, but released weights were trained so.
    """
    prior_log_variance = gather(schedule.posterior_log_variance_clipped, t, x0)
    log_variance = learned_log_variance(v, t, schedule)
    # Both means have the same term in x_t, so x_0 alone makes their difference. At t = 0 the
    # coefficient is 1 and the difference x_0 minus the mean.
    error = x0 - predict_x0(epsilon, x_t, t, schedule)
    difference = gather(schedule.posterior_mean_coef1, t, x0) * error
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


def discretized_gaussian_nll(x0: Images, difference: Images, log_variance: Images) -> Images:
    """-log of a Gaussian's mass on the level around x_0, in nats (DDPM, equation 13).

    difference = x_0 - mean. The outermost levels, |x_0| > 0.999, reach to infinity. A mass below
    1e-12 counts as 1e-12.
    """
    inverse_std = torch.exp(-0.5 * log_variance)
    upper = (difference + HALF_LEVEL) * inverse_std
    lower = (difference - HALF_LEVEL) * inverse_std
    # [lower, upper] and [-upper, -lower] have the same mass; on the left of 0 the difference of two
    # distribution functions keeps its digits.
    mirror = difference > 0
    inner = _normal_cdf(torch.where(mirror, -lower, upper)) - _normal_cdf(
        torch.where(mirror, -upper, lower)
    )
    mass = torch.where(x0 < -0.999, _normal_cdf(upper), inner)
    mass = torch.where(x0 > 0.999, _normal_cdf(-lower), mass)
    return -torch.log(mass.clamp(min=1e-12))


def _normal_cdf(x: Images) -> Images:
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


def split_output(output: Output, num_channels: int) -> tuple[Images, Images | None]:
    """The network's output as (predicted noise, v); v is None where the variance is not learned.

    Raises: ValueError if the output has neither num_channels nor twice as many channels.
    """
    if output.shape[1] == num_channels:
        return output, None
    if output.shape[1] == 2 * num_channels:
        return output[:, :num_channels], output[:, num_channels:]
    raise ValueError(
        f"the network's output has {output.shape[1]} channels for {num_channels} in the data: "
        f"expected {num_channels}, or {2 * num_channels} with a learned variance"
    )


def predict_x0(epsilon: Images, x_t: Images, t: Indices, schedule: Schedule) -> Images:
    """x_0 where epsilon is the noise in x_t: DDPM's equation 4 solved for x_0."""
    scaled = gather(schedule.sqrt_recip_alphas_cumprod, t, x_t) * x_t
    return scaled - gather(schedule.sqrt_recipm1_alphas_cumprod, t, x_t) * epsilon


def learned_log_variance(v: Images, t: Indices, schedule: Schedule) -> Images:
    """From the posterior's log variance at v = -1 to log beta_t at v = 1 (improved DDPM, eq. 15).

    v may leave [-1, 1].
    """
    low = gather(schedule.posterior_log_variance_clipped, t, v)
    return low + (v + 1) / 2 * (gather(schedule.log_betas, t, v) - low)


def drop_labels(
    labels: Indices, null_label: int, probability: float, generator: torch.Generator
) -> Indices:
    """Each label replaced by the null label with this probability (Ho & Salimans 2022).

    One draw per sample, on the generator's device.

    Raises: ValueError for a probability outside [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"a label dropout of {probability}: give a probability, 0 to 1")
    draw = torch.rand(labels.shape, generator=generator, device=generator.device)
    return torch.where((draw < probability).to(labels.device), null_label, labels)
