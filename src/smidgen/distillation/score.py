"""What a base says of pictures: in which direction they become likelier (SDS), and how much better
it predicts their noise under one condition than under none.

B images, latents of C x h x w.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smidgen.diffusion.guidance import ConditionalModel, guide
from smidgen.diffusion.process import Process
from smidgen.diffusion.sampler import Denoise
from smidgen.models.base import Base
from smidgen.models.calling import calling, dtype_of
from smidgen.models.labels import Labels

LEAST, MOST = 0.02, 0.98  # quantiles of the times that are drawn, as DreamFusion's


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A base, with whatever acts in it, that is asked about the label `shown`."""

    base: Base
    labels: Labels
    shown: int

    def denoiser(self, guidance: float) -> Denoise:
        """What samplers would read of x_t for the label, at this scale of guidance; a base that is
        told the scale as an input is told it.
        """
        embedded = self.base.family.guidance == "embedded"
        model = self._model(guidance if embedded else None)
        scale = 1.0 if embedded else guidance

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            shown = torch.full((len(x),), self.shown, device=x.device)
            return guide(model, shown, self.labels.null, scale)(x, t)

        return denoise

    def _model(self, told: float | None = None) -> ConditionalModel:
        """The base without guidance, or told this scale: (x, t, labels) -> what samplers read."""
        base = self.base
        network, dtype = calling(base.family, base.denoiser, told), dtype_of(base.denoiser)

        def model(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            output = network(x.to(dtype), t, self.labels.conditions(labels))
            return base.process.predicted(output.float(), x, t)

        return model

    @torch.no_grad()
    def preference(self, latents: Tensor, generator: torch.Generator, rounds: int = 8) -> float:
        """By how much the error of the predicted noise of these latents (B, C, h, w) is smaller
        under the label than under none, as a share of the latter: above 0 the base takes them for
        what the label says (a diffusion classifier, Li et al. 2023, arXiv 2303.16203).
        """
        errors = torch.zeros(2, dtype=torch.float64)
        process, model = self.base.process, self._model()
        for number in range(rounds):
            quantile = torch.full((len(latents),), (number + 0.5) / rounds, dtype=torch.float64)
            t = process.times(quantile).to(latents.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents.device)
            x_t = process.noised(latents, t, noise)
            alpha, sigma = scales(process, latents, t)
            for place, label in enumerate((self.shown, self.labels.null)):
                labels = torch.full((len(latents),), label, device=latents.device)
                found = process.x0(model(x_t, t, labels), x_t, t)
                errors[place] += float((alpha / sigma * (latents - found)).square().mean())
        return float(1 - errors[0] / errors[1])


def scales(process: Process, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of x_t = alpha x_0 + sigma noise, as images (B, C, h, w)."""
    one, none = torch.ones_like(like), torch.zeros_like(like)
    return process.noised(one, t, none), process.noised(none, t, one)


@torch.no_grad()
def sds_target(
    process: Process, denoise: Denoise, latents: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Where score distillation pulls latents (B, C, h, w), and how strongly (B, 1, 1, 1), at a
    random time and with random noise for each.

    The gradient of SDS is sigma^2 (predicted noise - noise) (Poole et al. 2022, arXiv 2209.14988,
    equation 3), the network itself not being differentiated. With x_t = alpha x_0 + sigma noise
    that is alpha sigma (x_0 - predicted x_0), whatever the network predicts: the target is the
    predicted x_0, the strength alpha sigma.
    """
    quantiles = torch.rand(len(latents), generator=generator, dtype=torch.float64)
    t = process.times(LEAST + (MOST - LEAST) * quantiles, "uniform").to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    x_t = process.noised(latents, t, noise)
    alpha, sigma = scales(process, latents, t)
    return process.x0(denoise(x_t, t), x_t, t), (alpha * sigma)[:, :1, :1, :1]
