"""Where a prediction differs with and without the subject's token, or with a class and without: the
visual analysis of Xiang et al. 2023 (arXiv 2303.18181), section 4.

A picture is noised, its noise predicted under both conditions, and the map of the difference shows
whether the network noticed. B pictures, C latent channels of h x w, T times.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.diffusion.process import without_variance
from smidgen.models.base import Base
from smidgen.models.calling import calling, dtype_of
from smidgen.models.labels import Labels


@dataclass(frozen=True, kw_only=True, eq=False)
class Noised:
    """Pictures as latents x_0 (B, C, h, w), with one noise each for all times (T,)."""

    latents: Tensor
    noise: Tensor
    times: Tensor

    @classmethod
    def of(cls, base: Base, latents: Tensor, num_times: int, seed: int) -> Noised:
        """At as many times as that, in the middles of as many equal shares of what training draws
        (`process.times`), so from little noise to much.
        """
        generator = torch.Generator().manual_seed(seed)  # on the CPU, whatever the device
        noise = torch.randn(latents.shape, generator=generator)
        shares = (torch.arange(num_times, dtype=torch.float64) + 0.5) / num_times
        times = base.process.times(shares).to(base.device)
        return cls(latents=latents.to(base.device), noise=noise.to(base.device), times=times)

    def at(self, base: Base, number: int) -> tuple[Tensor, Tensor]:
        """x_t (B, C, h, w) and t (B,) at the time of this number."""
        t = self.times[number].expand(len(self.latents))
        return base.process.noised(self.latents, t, self.noise), t


@dataclass(frozen=True, kw_only=True, eq=False)
class Differences:
    """`maps` (T, B, h, w): the root mean square over channels of what the two predictions differ
    by, in the units of the noise (of the velocity of a flow), whose variance is about 1. `relative`
    (T,): |with - without| / |without| over all pictures.
    """

    maps: Tensor
    relative: Tensor


@torch.no_grad()
def predict(base: Base, labels: Labels, label: int, noised: Noised, number: int) -> Tensor:
    """What the network predicts, (B, C, h, w), under this label, with whatever acts in it."""
    x_t, t = noised.at(base, number)
    condition = labels.conditions(torch.full((len(x_t),), label, device=x_t.device))
    output = calling(base.family, base.denoiser)(x_t.to(dtype_of(base.denoiser)), t, condition)
    return without_variance(base.process.predicted(output, x_t, t), x_t).float()


def differences(base: Base, labels: Labels, shown: int, other: int, noised: Noised) -> Differences:
    """Between the labels `shown` and `other`, with whatever acts in the network of `base`."""
    maps, relative = [], []
    for number in range(len(noised.times)):
        without = predict(base, labels, other, noised, number)
        change = predict(base, labels, shown, noised, number) - without
        maps.append(change.square().mean(dim=1).sqrt())
        relative.append(change.norm() / without.norm())
    return Differences(maps=torch.stack(maps).cpu(), relative=torch.stack(relative).cpu())
