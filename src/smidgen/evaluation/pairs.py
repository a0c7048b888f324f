"""Pairs of drawings of a base that reads prompts: the same prompts and noise with a delta and
without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from smidgen import processes
from smidgen.core.delta import Delta
from smidgen.evaluation.contexts import Prompts, world_of
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.samples import Others, colours_right, pixel_rmse
from smidgen.evaluation.stream import ArrayBatch, accumulate, array_batches
from smidgen.models.base import Base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import Drawing, prepare

PER_PROMPT = 4  # samples, as in DreamBench
PER_OTHER = 8  # of another prompt, where nothing else is drawn of prompts


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One drawing with the delta and one without it; `said` is what the images of each prompt are
    compared with. `rmse` and `colours` fill up while both are drawn.
    """

    tuned: Drawing
    plain: Drawing
    said: Sequence[str]
    rmse: list[float] = field(default_factory=list)
    colours: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """With the delta, and as many without."""
        return self.tuned.num_images

    @property
    def prompt(self) -> Tensor:
        """The place of each image's prompt, (N)."""
        return torch.tensor([self.tuned.label(number) for number in range(self.num_images)])

    def batches(self, start: int) -> Iterator[ArrayBatch]:
        """This process's share of both: images with the delta count from `start` on, the others
        behind all of these.
        """
        part = (processes.rank(), processes.world_size())
        with (
            closing(self.tuned.batches(part=part)) as tuned,
            closing(self.plain.batches(part=part)) as plain,
        ):
            for (numbers, images), (_, base) in zip(tuned, plain, strict=True):
                said = [self.said[self.tuned.label(number)] for number in numbers]
                self.rmse.extend(pixel_rmse(images, base))
                self.colours.append((colours_right(images, said), colours_right(base, said)))
                yield start + numbers.start, images, said
                yield start + self.num_images + numbers.start, base, said

    def seen(self, features: Tensor) -> Others:
        """Its samples as an extractor sees them, (2 N, D), those with the delta first."""
        tuned, base = features.chunk(2)
        rmse = torch.tensor(processes.gather_list(self.rmse))
        return Others(tuned=tuned, base=base, prompt=self.prompt, rmse=rmse)

    def all_colours(self) -> tuple[Tensor, Tensor]:
        """Whether colours are right, (C, 2), with the delta and without, of all processes."""
        both = processes.gather_list(self.colours)
        with_delta, without = (torch.cat(part) for part in zip(*both, strict=True))
        return with_delta, without


def draw_pairs(
    base: Base, delta: Delta, prompts: Prompts, sampling: SamplingConfig
) -> tuple[Pair, Pair]:
    """The pair of the subject and that of others, with as many samples of a prompt.

    Raises: as `prepare`.
    """
    count = sampling.num_images or PER_PROMPT * len(prompts.drawn)
    each = -(-count // len(prompts.drawn))
    own = _pair(base, delta, prompts.drawn, replace(sampling, num_images=count), prompts.said)
    return own, _of_others(base, delta, prompts.others, sampling, each)


def draw_others(
    base: Base, delta: Delta | None, sampling: SamplingConfig, extractors: Sequence[Extractor]
) -> Mapping[str, Others]:
    """Samples of the world's other prompts, as each extractor sees them, by its name.

    Raises: as `prepare`.
    """
    pair = _of_others(base, delta, world_of(base).others, sampling, PER_OTHER)
    seen = accumulate(
        array_batches(pair.batches(0), extractors),
        extractors,
        {one.name: frozenset({"drift"}) for one in extractors},
        what="samples of other prompts",
        shared=True,
    ).accumulated
    return {name: pair.seen(_kept(one.features)) for name, one in seen.items()}


def _kept(features: Tensor | None) -> Tensor:
    assert features is not None, "features are kept for the drift"
    return features


def _of_others(
    base: Base, delta: Delta | None, others: tuple[str, ...], sampling: SamplingConfig, each: int
) -> Pair:
    """The pair of prompts that nothing was trained for, so many samples of each."""
    return _pair(base, delta, others, replace(sampling, num_images=each * len(others)), others)


def _pair(
    base: Base,
    delta: Delta | None,
    prompts: tuple[str, ...],
    sampling: SamplingConfig,
    said: tuple[str, ...],
) -> Pair:
    config = replace(sampling, prompt=prompts, classes="all")
    tuned = prepare(base, config, delta=delta)
    plain = prepare(base, replace(config, edits="all"))
    return Pair(tuned=tuned, plain=plain, said=said)


def all_batches(pairs: Sequence[Pair]) -> Iterator[ArrayBatch]:
    """The batches of all pairs, one behind the other."""
    start = 0
    for pair in pairs:
        yield from pair.batches(start)
        start += 2 * pair.num_images
