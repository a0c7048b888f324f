"""Drawing images from a base, with or without a delta. B images of a batch.

Image i has class (or prompt) i mod K and depends on the seed and i alone: it has its own generator.
Which steps it takes, and from where, is in route.py.
A DiT draws it alike in any batch (fast/network.py); in other networks products round by their size.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.core.edits import Table, Weight
from smidgen.core.partial import part_of
from smidgen.core.sharding import group_of
from smidgen.diffusion.guidance import guide
from smidgen.diffusion.sampler import draw_noise, sample_generator
from smidgen.errors import UsageError
from smidgen.fast.acting import acting, scheduled
from smidgen.models.base import Base
from smidgen.models.calling import Network, calling, dtype_of
from smidgen.models.labels import Labels, labels_of
from smidgen.models.positions import check_positions
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.pair import Pair
from smidgen.sampling.route import Route, route_of

# (numbers of the images, uint8 (B, H, W, 3))
Drawn = tuple[range, NDArray[np.uint8]]
# (images done, images in all)
Report = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A request that was checked against its base: image i shows label `chosen[i mod K]`. `pair`
    None: guidance leads away from no class of the same network.
    """

    base: Base
    config: SamplingConfig
    delta: Delta | None
    labels: Labels
    chosen: tuple[int, ...]
    route: Route
    pair: Pair | None = None

    @property
    def num_images(self) -> int:
        """Images in all."""
        return self.config.num_images or len(self.chosen)

    @property
    def numbers(self) -> Sequence[int]:
        """Those of the images that are drawn."""
        return tuple(sorted(set(self.config.numbers))) or range(self.num_images)

    def noise_of(self, number: int) -> int:
        """Which noise the image of this number begins from."""
        return number // len(self.chosen) if self.config.same_noise else number

    def label(self, number: int) -> int:
        """What the image of this number shows."""
        return self.chosen[number % len(self.chosen)]

    def name(self, number: int) -> str:
        """The class or prompt of the image of this number."""
        return self.labels.names[self.label(number)]

    def facts(self) -> dict[str, Any]:
        """All that the images depend on, as JSON."""
        base, delta = self.base, self.delta
        return {
            "base": base.name,
            "base_fingerprint": base.fingerprint,
            "method": None if delta is None else delta.provenance.method,
            "image_size": base.image_size.plain,
            **({} if base.positions is None else {"positions": base.positions}),
            **self.config.facts(),
        }

    def batches(
        self, *, part: tuple[int, int] = (0, 1), report: Report | None = None
    ) -> Generator[Drawn, None, None]:
        """The images in batches; the delta acts in the base only while one is drawn. `part` (k, n):
        every n-th batch only, from batch k on, for the k-th of n processes; all n draw equally
        often if each has a part of the base. Where only some
        `numbers` are asked for, the batches that hold them are drawn whole, to the same bits, and
        these images come one by one.
        """
        size, total, asked = self.config.batch_size, self.num_images, self.numbers
        starts, done = range(0, total, size), 0
        if not isinstance(asked, range):
            starts = sorted({number // size * size for number in asked})
        own = starts[part[0] :: part[1]]
        for start in own:
            numbers = range(start, min(start + size, total))
            wanted = numbers if isinstance(asked, range) else [n for n in asked if n in numbers]
            images, done = self.images(numbers), done + len(wanted)
            if report is not None:
                report(numbers.stop if wanted is numbers else done, len(asked))
            if wanted is numbers:
                yield numbers, images
                continue
            for number in wanted:
                yield range(number, number + 1), images[number - start :][:1]
        self.go_along(len(starts[:: part[1]]) - len(own))

    def go_along(self, num_batches: int) -> None:
        """Draw so many batches for nobody, while other processes draw theirs, for which they need
        the parts of the weights that this one has; nothing is drawn where none has parts.
        """
        if group_of(self.base.denoiser) is not None:
            for _ in range(num_batches):
                self.images(self.numbers[:1])

    def images(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """The images of these numbers, uint8 (B, H, W, 3), drawn at once."""
        network = self.base.denoiser
        with acting(self.delta, network) if self.pair is None else self.pair.acting():
            images = draw_batch(self, numbers)
        return images.permute(0, 2, 3, 1).cpu().numpy()


def prepare(
    base: Base,
    config: SamplingConfig,
    *,
    delta: Delta | None = None,
    labels: Labels | None = None,
) -> Drawing:
    """The drawing of what `config` asks for. `labels` None: those of its prompts, of the delta's
    classes or of the base's.

    Raises: UsageError for a class, sampler, number of steps or picture that is not for this base,
        or a number beyond the images; SmidgenError for a delta of another base, or a base that no
        host calls.
    """
    _ = base.family  # says so if no host calls this network
    config = config.resolved(base)
    if delta is None and config.edits != "all":
        raise UsageError(f'edits "{config.edits}" are of a delta; give one, or leave it out')
    placed = None if delta is None else _placed(delta, base, config.edits)
    known = labels or labels_of(base, placed, config.prompt, config.negative_prompt)
    chosen = tuple(known.names.index(name) for name in config.chosen(known.names))
    count = config.num_images or len(chosen)
    if config.numbers and max(config.numbers) >= count:
        raise UsageError(
            f"numbers has {max(config.numbers)}, and of {count} images the last is {count - 1}; "
            "give more num_images, or another number"
        )
    pair = None if config.guidance_kind == "classifier-free" else _pair(base, config, placed, known)
    return Drawing(
        base=base,
        config=config,
        delta=placed,
        labels=known,
        chosen=chosen,
        route=route_of(base, config),
        pair=pair,
    )


def _pair(base: Base, config: SamplingConfig, delta: Delta | None, labels: Labels) -> Pair:
    """The delta, and what guidance leads away from.

    Raises: UsageError without a delta, or for a weaker one of other classes; SmidgenError for a
        file that is none, or one of another base.
    """
    if delta is None:
        raise UsageError(
            f"guidance_kind {config.guidance_kind} leads from the base to a delta; give one"
        )
    prompts = labels.names if base.conditioner is not None else ()
    if config.guidance_delta is None:
        tables = [edit for edit in delta.edits.values() if isinstance(edit, Table)]
        if base.conditioner is None:  # labels mean classes, and the base has its own of none
            null = tables[0].num_old_rows - 1 if tables else labels.null
            return Pair(base, (delta, labels), (None, labels), null)
        without = labels_of(base, None, prompts, config.negative_prompt)
        return Pair(base, (delta, labels), (None, without), without.null)
    weaker = _placed(Delta.load(config.guidance_delta), base, config.edits)
    assert weaker is not None, "a part of both is there where it is of the first"
    known = labels_of(base, weaker, prompts)
    if known.names != labels.names:
        raise UsageError(
            f"{config.guidance_delta} is of other classes than the delta; give one of the same run"
        )
    return Pair(base, (delta, labels), (weaker, known), None)


def draw_batch(drawing: Drawing, numbers: Sequence[int], predict: Network | None = None) -> Tensor:
    """uint8 images (B, 3, H, W) of these numbers, of the base as it is now, with whatever is
    attached to it; `predict` is called in place of its network, by one that calls it for many
    drawings at once.
    """
    base, config, labels = drawing.base, drawing.config, drawing.labels
    embedded = base.family.guidance == "embedded"
    told = config.guidance if embedded else None
    called = calling(base.family, base.denoiser, told, predict)
    dtype = dtype_of(base.denoiser)

    def call(x: Tensor, t: Tensor, shown: Tensor, labels: Labels) -> Tensor:
        return base.process.predicted(called(x.to(dtype), t, labels.conditions(shown)), x, t)

    def acts(t: Tensor) -> bool:
        low, high = config.guidance_interval
        return low <= float(base.process.level(t[0])) <= high

    shown = torch.tensor([drawing.label(number) for number in numbers], device=base.device)
    scale = 1.0 if embedded else config.guidance
    network, other = partial(call, labels=labels), labels.null
    if drawing.pair is not None:
        network = drawing.pair.calls(call, len(shown))
        other = shown if drawing.pair.null is None else drawing.pair.null
    denoise = guide(network, shown, other, scale, config.guidance_channels, acts)
    generators = [sample_generator(config.seed, drawing.noise_of(number)) for number in numbers]
    noise = draw_noise(base.latent_shape, generators, base.device)
    times = drawing.route.times()
    with scheduled(base.denoiser, times) if predict is None else nullcontext():
        latents = drawing.route.sample(denoise, noise, generators)
    return as_bytes(base.codec.decode(latents))


def as_bytes(pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8, of the same shape."""
    return ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _placed(delta: Delta, base: Base, edits: str) -> Delta | None:
    """What `edits` means of the delta, where the base is; the caller's own one is never moved."""
    delta.check_base(base.fingerprint, base.name)
    check_positions(delta, base)
    part = part_of(delta, edits)
    if part is None:
        return None
    delta = part
    dtype, device = dtype_of(base.denoiser), base.device
    weights = [edit for edit in delta.edits.values() if isinstance(edit, Weight)]
    fits = all(p.device == device for p in delta.parameters())
    if fits and all(p.dtype == dtype for edit in weights for p in edit.parameters()):
        return delta
    delta = delta.clone().to(device)
    for edit in delta.edits.values():
        if isinstance(edit, Weight):
            edit.to(dtype)
    return delta
