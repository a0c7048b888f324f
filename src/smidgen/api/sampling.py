"""Drawing images from a base, with or without a delta.

Image i has class i mod K and depends on the seed and i alone: it has its own generator, and batches
are filled up so that matrix products round alike whatever the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.core.edits import Weight
from smidgen.diffusion.guidance import Channels, guide
from smidgen.diffusion.sampler import SAMPLERS, draw_noise, sample_generator
from smidgen.errors import UsageError, closest
from smidgen.models.base import Base
from smidgen.training.journal import counting_bar
from smidgen.training.network import class_names, dtype_of

# Products of fewer rows run other kernels, which round differently: the network's batches are
# multiples of this. Measured for the (B, D) products of a DiT, 1 to 1024 rows, on an AVX-512 CPU;
# GPUs promise nothing of the kind, so there a last bit may differ.
ROWS = 4


def sample(
    base: Base,
    *,
    delta: Delta | str | Path | None = None,
    classes: str | Sequence[str] = "all",
    num_images: int | None = None,
    steps: int = 50,
    sampler: str = "ddpm",
    guidance: float = 1.5,
    guidance_channels: Channels = "all",
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Image.Image]:
    """Images of the base, or of the base with `delta` (a Delta or its file).

    `classes`: names, or "all"; image i has class i mod K. `num_images` is the total, None one of
    each class. `sampler`: "ddpm", "ddim" or "dpm++". `guidance` 1 is without guidance. The images
    do not depend on `batch_size`, and the first n do not depend on `num_images`.

    Raises: UsageError for an unknown class or sampler or a number that makes no sense, SmidgenError
        for a file that is no delta, or a delta of another base.
    """
    batches = sample_arrays(
        base,
        delta=delta,
        classes=classes,
        num_images=num_images,
        steps=steps,
        sampler=sampler,
        guidance=guidance,
        guidance_channels=guidance_channels,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return [Image.fromarray(image) for _, images, _ in batches for image in images]


def sample_arrays(
    base: Base,
    *,
    delta: Delta | str | Path | None = None,
    classes: str | Sequence[str] = "all",
    num_images: int | None = None,
    steps: int = 50,
    sampler: str = "ddpm",
    guidance: float = 1.5,
    guidance_channels: Channels = "all",
    seed: int = 0,
    batch_size: int = 32,
    part: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Generator[tuple[range, NDArray[np.uint8], list[int]], None, None]:
    """The images of `sample` batch by batch: (their numbers, uint8 (B, H, W, 3), class indices).

    Everything is checked at the call; the delta acts in the base only while a batch is drawn.
    `part` (k, n): every n-th batch only, from batch k on, for the k-th of n processes.

    Raises: as `sample`.
    """
    _check(base, num_images, steps, sampler, guidance, guidance_channels, seed, batch_size)
    placed = _placed(delta, base)
    known = class_names(base, placed)
    chosen = [known.index(name) for name in choose_classes(classes, known)]
    total = len(chosen) if num_images is None else num_images

    def draw(numbers: range) -> Tensor:
        labels = [chosen[number % len(chosen)] for number in numbers]
        return draw_images(
            base,
            torch.tensor(labels),
            [sample_generator(seed, number) for number in numbers],
            null_label=len(known),
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            guidance_channels=guidance_channels,
        )

    def batches() -> Generator[tuple[range, NDArray[np.uint8], list[int]], None, None]:
        with counting_bar("sampling", progress=progress) as report:
            for start in range(0, total, batch_size)[part[0] :: part[1]]:
                numbers = range(start, min(start + batch_size, total))
                # filled up with the images that would come next, which are thrown away
                rows = ROWS // math.gcd(ROWS, 1 if guidance == 1 else 2)
                filled = range(start, start + -(-len(numbers) // rows) * rows)
                attached: AbstractContextManager[Any] = nullcontext()
                if placed is not None:
                    attached = placed.attach(base)
                with attached:
                    images = draw(filled)[: len(numbers)]
                report(numbers.stop, total)
                labels = [chosen[number % len(chosen)] for number in numbers]
                yield numbers, images.permute(0, 2, 3, 1).cpu().numpy(), labels

    return batches()


def draw_images(
    base: Base,
    labels: Tensor,
    generators: Sequence[torch.Generator],
    *,
    null_label: int,
    steps: int,
    sampler: str = "ddpm",
    guidance: float = 1.5,
    guidance_channels: Channels = "all",
) -> Tensor:
    """uint8 images (B, 3, H, W) of the base as it is now, with whatever is attached to it."""
    config, device = base.denoiser.config, base.device
    dtype = dtype_of(base.denoiser)

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return base.denoiser(x.to(dtype), t, y)

    denoise = guide(network, labels.to(device), null_label, guidance, guidance_channels)
    shape = (config.in_channels, config.image_size, config.image_size)
    noise = draw_noise(shape, generators, device)
    latents = SAMPLERS[sampler](denoise, noise, base.schedule, steps, generators)
    pixels = base.codec.decode(latents)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def choose_classes(classes: str | Sequence[str], known: Sequence[str]) -> list[str]:
    """The names that `classes` means: "all", one name, or several.

    Raises: UsageError for a name that is not known, with the closest one, or for none at all.
    """
    if classes == "all" and "all" not in known:
        return list(known)
    chosen = [classes] if isinstance(classes, str) else list(classes)
    if not chosen:
        raise UsageError('no classes given; name some, or "all"')
    for name in chosen:
        if name not in known:
            raise UsageError(f'unknown class "{name}"{closest(name, known)}')
    return chosen


def _placed(delta: Delta | str | Path | None, base: Base) -> Delta | None:
    """The delta where the base is; the caller's own one is never moved.

    Raises: SmidgenError if it belongs to another base.
    """
    if delta is None:
        return None
    if not isinstance(delta, Delta):
        delta = Delta.load(delta)
    delta.check_base(base.fingerprint, base.name)
    dtype = dtype_of(base.denoiser)
    weights = [edit for edit in delta.edits.values() if isinstance(edit, Weight)]
    fits = all(p.device == base.device for p in delta.parameters())
    if fits and all(p.dtype == dtype for edit in weights for p in edit.parameters()):
        return delta
    delta = delta.clone().to(base.device)
    for edit in delta.edits.values():
        if isinstance(edit, Weight):
            edit.to(dtype)
    return delta


def _check(
    base: Base,
    num_images: int | None,
    steps: int,
    sampler: str,
    guidance: float,
    guidance_channels: str,
    seed: int,
    batch_size: int,
) -> None:
    counts = {"num_images": num_images, "steps": steps, "batch_size": batch_size}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; expected at least 1")
    if sampler not in SAMPLERS:
        raise UsageError(f'unknown sampler "{sampler}"{closest(sampler, SAMPLERS)}')
    most = base.schedule.num_steps - (sampler == "dpm++")
    if steps > most:
        raise UsageError(f"steps is {steps}; {sampler} takes at most {most} with this base")
    if not (math.isfinite(guidance) and guidance >= 0):
        raise UsageError(f"guidance is {guidance}; expected a finite number of at least 0")
    if guidance_channels not in ("all", "first-three"):
        raise UsageError(f'guidance_channels is "{guidance_channels}"; choose: all, first-three')
    if seed < 0:
        raise UsageError(f"seed is {seed}; expected at least 0")
