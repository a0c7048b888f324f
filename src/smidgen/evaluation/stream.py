"""From images to what is accumulated of them: one pass for all features, no images held.

Images come from a listed folder, or as arrays from a sampler or a file; both go through the
extractors' own `prepare`. B images a batch, S pixels a side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen import processes
from smidgen.data.folder import ImageFolder, Progress
from smidgen.data.images import UnusableImage, decode, strict_pillow
from smidgen.data.listing import BadFile
from smidgen.data.reading import ordered_map
from smidgen.errors import SmidgenError
from smidgen.evaluation.accumulate import Accumulated, Accumulator
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.gathering import gather
from smidgen.evaluation.table import needing

# (number of the first image, uint8 (B, H, W, 3), class name of each image or None)
ArrayBatch = tuple[int, NDArray[np.uint8], Sequence[str] | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """A batch as the extractors take it: `pixels` has (B, 3, S, S) for each of them by name.

    `numbers` are the images' places in the whole set, `names` the classes that they were meant to
    show. `hashes` has the SHA-256 of all that was read by place, `bad` what had to be skipped.
    """

    first: int
    numbers: tuple[int, ...]
    pixels: Mapping[str, Tensor]
    names: tuple[str, ...] | None
    hashes: Mapping[int, str]
    bad: tuple[BadFile, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A whole set: what was accumulated for each extractor, and which images it is about.

    `numbers` are the places of the images that could be used, `hashes` those of all that was read,
    both in order of place.
    """

    accumulated: Mapping[str, Accumulated]
    numbers: tuple[int, ...]
    hashes: tuple[str, ...]
    bad: tuple[BadFile, ...] = ()

    @property
    def intended(self) -> tuple[str, ...] | None:
        """What each image was meant to show, None if any is unknown."""
        return next(iter(self.accumulated.values())).intended


def folder_batches(
    images: ImageFolder,
    extractors: Sequence[Extractor],
    parts: Sequence[range],
    *,
    intended: Sequence[str] | None = None,
) -> Iterator[Prepared]:
    """The files of a listed folder in `parts` (ranges of places), each read and decoded once."""

    def load(place: int) -> tuple[str, list[Tensor] | BadFile]:
        file = images.files[place]
        content = ""
        try:
            data = file.read()
            content = hashlib.sha256(data).hexdigest()
            pixels = np.asarray(decode(data, file.path, images.min_size)[0])
        except UnusableImage as error:
            return content, BadFile(path=file.path, reason=str(error))
        return content, [extractor.prepare(pixels) for extractor in extractors]

    places = [place for part in parts for place in part]
    with strict_pillow(), closing(ordered_map(load, places)) as loaded:
        for part in parts:
            outcomes = {place: next(loaded) for place in part}
            good = {p: found for p, (_, found) in outcomes.items() if isinstance(found, list)}
            stacks = [torch.stack(same) for same in zip(*good.values(), strict=True)]
            yield Prepared(
                first=part.start,
                numbers=tuple(good),
                pixels={e.name: stack for e, stack in zip(extractors, stacks, strict=False)},
                names=None if intended is None else tuple(intended[place] for place in good),
                hashes={place: content for place, (content, _) in outcomes.items()},
                bad=tuple(found for _, found in outcomes.values() if isinstance(found, BadFile)),
            )


def array_batches(
    batches: Iterable[ArrayBatch], extractors: Sequence[Extractor]
) -> Iterator[Prepared]:
    """Images that are in memory already, a batch at a time.

    Raises: SmidgenError for arrays that are no images, or as many names as there are no images.
    """
    for first, images, names in batches:
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise SmidgenError(
                f"image {first} and those after it are {images.dtype} {images.shape}; "
                "expected uint8 (number, height, width, 3)"
            )
        if names is not None and len(names) != len(images):
            raise SmidgenError(f"{len(names)} class names for {len(images)} images from {first} on")
        prepared = list(ordered_map(lambda one: [e.prepare(one) for e in extractors], list(images)))
        stacks = [torch.stack(same) for same in zip(*prepared, strict=True)]
        yield Prepared(
            first=first,
            numbers=tuple(range(first, first + len(images))),
            pixels={e.name: stack for e, stack in zip(extractors, stacks, strict=False)},
            names=None if names is None else tuple(names),
            hashes={
                first + place: hashlib.sha256(image.tobytes()).hexdigest()
                for place, image in enumerate(images)
            },
        )


def accumulate(
    batches: Iterable[Prepared],
    extractors: Sequence[Extractor],
    metrics: Mapping[str, frozenset[str]],
    *,
    what: str,
    prompt: str = "{}",
    shared: bool = False,
    total: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Everything that `metrics` (by extractor) need of the images, read in one pass.

    With `shared` each process has a part of the batches and all get the whole. `prompt` makes a
    text of a class name where a metric compares with texts. `what` names the images in errors.

    Raises: SmidgenError if there is no image or a feature is not finite.
    """
    parts = {e.name: Accumulator(e.dim, e.heads, metrics[e.name]) for e in extractors}
    texts: dict[tuple[str, str], Tensor] = {}
    numbers: list[int] = []
    hashes: dict[int, str] = {}
    bad: list[BadFile] = []
    for batch in batches:
        for extractor in extractors if batch.numbers else ():
            features, logits = extractor.read(batch.pixels[extractor.name])
            wants_texts = batch.names is not None and needing(metrics[extractor.name], "texts")
            parts[extractor.name].update(
                features,
                logits,
                first_index=batch.first,
                intended=batch.names,
                texts=_texts(extractor, batch.names or (), prompt, texts) if wants_texts else None,
            )
        numbers += batch.numbers
        hashes |= batch.hashes
        bad += batch.bad
        if progress is not None and total is not None:
            progress(min(total, len(hashes) * (processes.world_size() if shared else 1)), total)
    if shared:
        parts = {name: gather(part) for name, part in parts.items()}
        numbers = processes.gather_list(numbers)
        hashes = dict(processes.gather_list(list(hashes.items())))
        bad = processes.gather_list(bad)
    if not numbers:
        reasons = "; ".join(f"{file.path.name}: {file.reason}" for file in bad[:3])
        raise SmidgenError(f"no usable image in {what}" + (f": {reasons}" if bad else ""))
    return Measured(
        accumulated={name: part.result() for name, part in parts.items()},
        numbers=tuple(sorted(numbers)),
        hashes=tuple(hashes[place] for place in sorted(hashes)),
        bad=tuple(bad),
    )


def _texts(
    extractor: Extractor, names: Sequence[str], prompt: str, known: dict[tuple[str, str], Tensor]
) -> Tensor:
    """The embedding (B, D) of each name's text; each text is read once."""
    assert extractor.text is not None, "the plan gives texts to features that read them"
    new = [name for name in dict.fromkeys(names) if (extractor.name, name) not in known]
    if new:
        rows = extractor.text([prompt.replace("{}", name) for name in new])
        known.update({(extractor.name, n): row for n, row in zip(new, rows, strict=True)})
    return torch.stack([known[extractor.name, name] for name in names])
