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
from smidgen.diffusion.flow import FlowSchedule, euler
from smidgen.diffusion.guidance import Channels, ConditionalModel, guide
from smidgen.diffusion.objective import epsilon_from_v
from smidgen.diffusion.sampler import SAMPLERS, draw_noise, sample_generator
from smidgen.errors import UsageError, closest
from smidgen.models.base import Base
from smidgen.models.conditioner import Conditions, labels_alone
from smidgen.training.journal import counting_bar
from smidgen.training.network import class_names, class_prompts, dtype_of
from smidgen.training.objective import calling

# Products of fewer rows run other kernels, which round differently: the network's batches are
# multiples of this. Measured for the (B, D) products of a DiT, 1 to 1024 rows, on an AVX-512 CPU;
# GPUs promise nothing of the kind, so there a last bit may differ.
ROWS = 4

DEFAULT_SAMPLER, FLOW_SAMPLER = "ddpm", "euler"


def sample(
    base: Base,
    *,
    delta: Delta | str | Path | None = None,
    classes: str | Sequence[str] = "all",
    prompts: str | Sequence[str] | None = None,
    num_images: int | None = None,
    steps: int = 50,
    sampler: str | None = None,
    guidance: float = 1.5,
    guidance_channels: Channels = "all",
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> list[Image.Image]:
    """Images of the base, or of the base with `delta` (a Delta or its file).

    `classes`: names, or "all"; image i has class i mod K. `prompts`: the same for a base that reads
    them, None: those of the classes that the delta was trained on. `num_images` is the total, None
    one of each class. `sampler`: "ddpm", "ddim" or "dpm++", "euler" for a flow-matching base; None:
    "ddpm" or "euler". `guidance` 1 is without guidance, unless the base has it as an input. The
    images do not depend on `batch_size`, and the first n do not depend on `num_images`.

    Raises: UsageError for an unknown class or sampler or a number that makes no sense, SmidgenError
        for a file that is no delta, a delta of another base, or a base that no host calls.
    """
    batches = sample_arrays(
        base,
        delta=delta,
        classes=classes,
        prompts=prompts,
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
    prompts: str | Sequence[str] | None = None,
    num_images: int | None = None,
    steps: int = 50,
    sampler: str | None = None,
    guidance: float = 1.5,
    guidance_channels: Channels = "all",
    seed: int = 0,
    batch_size: int = 32,
    part: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Generator[tuple[range, NDArray[np.uint8], list[int]], None, None]:
    """The images of `sample` batch by batch: (their numbers, uint8 (B, H, W, 3), class or prompt
    indices).

    Everything is checked at the call; the delta acts in the base only while a batch is drawn.
    `part` (k, n): every n-th batch only, from batch k on, for the k-th of n processes.

    Raises: as `sample`.
    """
    _check(base, num_images, steps, sampler, guidance, guidance_channels, seed, batch_size)
    placed = _placed(delta, base)
    known, conditions = _known(base, placed, prompts)
    chosen = [known.index(name) for name in choose_classes(classes, known)]
    total = len(chosen) if num_images is None else num_images

    def draw(numbers: range) -> Tensor:
        labels = [chosen[number % len(chosen)] for number in numbers]
        return draw_images(
            base,
            torch.tensor(labels),
            [sample_generator(seed, number) for number in numbers],
            null_label=len(known),
            conditions=conditions,
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
    conditions: Conditions = labels_alone,
    steps: int,
    sampler: str | None = None,
    guidance: float = 1.5,
    guidance_channels: Channels = "all",
) -> Tensor:
    """uint8 images (B, 3, H, W) of the base as it is now, with whatever is attached to it;
    `conditions` says what labels mean to it.
    """
    embedded = base.family.guidance == "embedded"
    network = _network(base, conditions, guidance if embedded else None)
    scale = 1.0 if embedded else guidance
    denoise = guide(network, labels.to(base.device), null_label, scale, guidance_channels)
    noise = draw_noise(base.latent_shape, generators, base.device)
    if isinstance(base.schedule, FlowSchedule):
        latents = euler(denoise, noise, base.schedule.sigmas(steps, base.num_tokens))
    else:
        draw = SAMPLERS[sampler or DEFAULT_SAMPLER]
        latents = draw(denoise, noise, base.schedule, steps, generators)
    pixels = base.codec.decode(latents)
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _network(base: Base, conditions: Conditions, guidance: float | None) -> ConditionalModel:
    """The base as the samplers want it: epsilon, with its variance where that is in use, or the
    velocity of a flow.
    """
    called, dtype = calling(base.family, base.denoiser, guidance), dtype_of(base.denoiser)
    schedule, objective = base.schedule, base.objective

    def network(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        output = called(x.to(dtype), t, conditions(labels))
        if objective == "hybrid":
            return output
        output = output[:, : x.shape[1]]
        if objective == "v" and not isinstance(schedule, FlowSchedule):
            return epsilon_from_v(output.to(x.dtype), x, t, schedule)
        return output

    return network


def _known(
    base: Base, delta: Delta | None, prompts: str | Sequence[str] | None
) -> tuple[tuple[str, ...], Conditions]:
    """The names of what can be drawn, classes or prompts, and what their numbers mean.

    Raises: UsageError for prompts that are missing, empty or of no use.
    """
    if prompts is not None:
        given = (prompts,) if isinstance(prompts, str) else tuple(dict.fromkeys(prompts))
        return given, base.conditions(given)
    if base.conditioner is not None and not class_names(base, delta):
        raise UsageError(
            f'base "{base.name}" reads prompts: give some (prompts=..., --prompt), or a delta that '
            "was trained on classes"
        )
    return class_names(base, delta), base.conditions(class_prompts(base, delta))


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
    sampler: str | None,
    guidance: float,
    guidance_channels: str,
    seed: int,
    batch_size: int,
) -> None:
    _ = base.family  # says so if no host calls this network
    counts = {"num_images": num_images, "steps": steps, "batch_size": batch_size}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; expected at least 1")
    samplers = (*SAMPLERS, FLOW_SAMPLER)
    if sampler is not None and sampler not in samplers:
        raise UsageError(f'unknown sampler "{sampler}"{closest(sampler, samplers)}')
    if isinstance(base.schedule, FlowSchedule):
        if sampler not in (None, FLOW_SAMPLER):
            raise UsageError(
                f'{sampler} does not sample "{base.name}", a flow-matching base; use {FLOW_SAMPLER}'
            )
    elif sampler == FLOW_SAMPLER:
        raise UsageError(
            f'{sampler} is for flow-matching bases, which "{base.name}" is not; '
            f"choose from: {', '.join(SAMPLERS)}"
        )
    else:
        most = base.schedule.num_steps - (sampler == "dpm++")
        if steps > most:
            name = sampler or DEFAULT_SAMPLER
            raise UsageError(f"steps is {steps}; {name} takes at most {most} with this base")
    if not (math.isfinite(guidance) and guidance >= 0):
        raise UsageError(f"guidance is {guidance}; expected a finite number of at least 0")
    if guidance_channels not in ("all", "first-three"):
        raise UsageError(f'guidance_channels is "{guidance_channels}"; choose: all, first-three')
    if seed < 0:
        raise UsageError(f"seed is {seed}; expected at least 0")
