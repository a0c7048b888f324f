"""Which sampling steps are walked, from where, and what is put back between them: from noise to an
image, or from a picture that is changed or restored. B images, latents of C x h x w.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from smidgen.diffusion.process import Process
from smidgen.diffusion.replacement import outside, refined
from smidgen.diffusion.sampler import After, Denoise
from smidgen.errors import UsageError
from smidgen.models.base import Base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.pictures import Pictures, read_pictures


@dataclass(frozen=True, kw_only=True)
class Route:
    """The last `first` of `steps` steps of a process; None: all, from noise alone.

    `known` (1, C, h, w) are the latents of the picture. With a `mask` (1, 1, h, w), 1 where it is
    drawn, or a `factor`, by which it is coarser, it is put back after each step with the noise that
    the image began from. `noisy`: it has the noise of the first step already.
    """

    process: Process
    sampler: str
    steps: int
    first: int | None = None
    known: Tensor | None = None
    mask: Tensor | None = None
    factor: int | None = None
    noisy: bool = False

    def times(self) -> Tensor:
        """t at which the network is called, in that order."""
        return self.process.sampled_times(**self._how())

    def sample(
        self, denoise: Denoise, noise: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Latents (B, C, h, w) of the images that begin from this noise."""
        begun, how = self._begun(noise), self._how()
        return self.process.sample(denoise, begun, generators, after=self._after(noise), **how)

    def _how(self) -> dict[str, Any]:
        return {"sampler": self.sampler, "steps": self.steps, "first": self.first}

    def _begun(self, noise: Tensor) -> Tensor:
        """x of the first step: that of pure noise where all steps are walked and something is kept,
        as in diffusers' pipelines.
        """
        kept = self.mask is not None or self.factor is not None
        if self.known is None or (kept and self.first == self.steps):
            return noise
        t = self.times()[:1].to(noise.device).expand(len(noise))
        return self._noised(t, torch.zeros_like(noise) if self.noisy else noise)

    def _noised(self, t: Tensor, noise: Tensor) -> Tensor:
        assert self.known is not None, "there is a picture"
        return self.process.noised(self.known.expand_as(noise), t, noise)

    def _after(self, noise: Tensor) -> After | None:
        known, mask, factor = self.known, self.mask, self.factor
        if known is None or (mask is None and factor is None):
            return None

        def put_back(x: Tensor, t: Tensor | None) -> Tensor:
            y = known.expand_as(x) if t is None else self._noised(t, noise)
            return outside(x, y, mask) if mask is not None else refined(x, y, factor or 1)

        return put_back


def route_of(base: Base, config: SamplingConfig) -> Route:
    """The route of what a resolved `config` asks for.

    Raises: UsageError for a picture or mask that cannot be used with this base.
    """
    assert config.sampler is not None, "the configuration of a drawing is resolved"
    plain = Route(process=base.process, sampler=config.sampler, steps=config.steps)
    pictures = read_pictures(config)
    if pictures is None:
        return plain
    pixels = torch.from_numpy(pictures.pixels(base.image_size)).float() / 127.5 - 1
    known = _encoded(base, pixels)
    if config.restore == "denoise":
        assert config.noise_level is not None, "it was checked"
        return _denoising(plain, known, _share_of_noise(base, pixels, config.noise_level))
    mask = _mask_of(base, pictures)
    factor = _factor_of(base, pictures) if config.restore == "upscale" else None
    return Route(
        process=base.process,
        sampler=plain.sampler,
        steps=plain.steps,
        first=config.first_steps,
        known=known,
        mask=mask,
        factor=factor,
    )


def _denoising(plain: Route, known: Tensor, share: float) -> Route:
    """From the picture as it is: the steps of the process below its share of noise, as many as
    there are of it.
    """
    process = plain.process.below(share, plain.steps)
    most = process.most_steps(plain.sampler)
    steps = plain.steps if most is None else min(plain.steps, most)
    return Route(process=process, sampler=plain.sampler, steps=steps, known=known, noisy=True)


def _share_of_noise(base: Base, pixels: Tensor, level: float) -> float:
    """sigma in (0, 1) as in a flow: how much of the latents of these pixels (3, H, W) is noise
    where that of the pixels has this standard deviation (black is 0, white is 1).

    A codec is not linear: it is asked how far as much noise again moves the latents.
    """
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    moved = _encoded(base, pixels + 2 * level * noise) - _encoded(base, pixels)
    spread = float(moved.square().mean().sqrt())
    return spread / (1 + spread)


def _encoded(base: Base, pixels: Tensor) -> Tensor:
    """(1, C, h, w) latents of pixels (3, H, W) in [-1, 1]: the mean of the codec's posterior."""
    mean, _ = base.codec.encode(pixels[None])
    return mean.to(base.device, torch.float32)


def _mask_of(base: Base, pictures: Pictures) -> Tensor | None:
    """(1, 1, h, w): of each latent pixel the mask at its upper left corner, as diffusers' pipelines
    take it.

    Raises: UsageError if it keeps all, or nothing.
    """
    masked = pictures.masked(base.image_size)
    if masked is None:
        return None
    whole = torch.from_numpy(masked).float()[None, None]
    mask = functional.interpolate(whole, size=base.latent_shape[1:])
    if not 0 < float(mask.mean()) < 1:
        kept, what = ("all", "white") if float(mask.mean()) == 0 else ("nothing", "black")
        factor = base.codec.factor
        raise UsageError(
            f"mask keeps {kept} of the image at the {factor} x {factor} pixels to a latent of base "
            f'"{base.name}"; make a part of it {what} that is larger than these'
        )
    return mask.to(base.device)


def _factor_of(base: Base, pictures: Pictures) -> int:
    """Raises: UsageError unless latents of this base have squares of as many pixels."""
    factor, (_, height, width) = pictures.factor(base.image_size), base.latent_shape
    if height % factor or width % factor:
        raise UsageError(
            f'image is {factor} times smaller than base "{base.name}" draws, whose latents of '
            f"{width} x {height} cannot be cut into squares of that; give a larger one"
        )
    return factor
