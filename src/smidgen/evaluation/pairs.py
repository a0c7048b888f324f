"""Pairs of drawings for a personalisation: the same prompts and noise with a delta and without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from smidgen import processes
from smidgen.core.delta import Delta
from smidgen.evaluation.contexts import Prompts
from smidgen.evaluation.samples import colours_right, pixel_rmse
from smidgen.evaluation.stream import ArrayBatch
from smidgen.models.base import Base
from smidgen.sampling.config import SamplingConfig
from smidgen.sampling.draw import Drawing, prepare

PER_PROMPT = 4  # samples, as in DreamBench


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

    def pair(drawn: tuple[str, ...], said: tuple[str, ...], num_images: int) -> Pair:
        config = replace(sampling, prompt=drawn, classes="all", num_images=num_images)
        tuned = prepare(base, config, delta=delta)
        plain = prepare(base, replace(config, edits="all"))
        return Pair(tuned=tuned, plain=plain, said=said)

    own = pair(prompts.drawn, prompts.said, count)
    return own, pair(prompts.others, prompts.others, each * len(prompts.others))


def all_batches(pairs: Sequence[Pair]) -> Iterator[ArrayBatch]:
    """The batches of all pairs, one behind the other."""
    start = 0
    for pair in pairs:
        yield from pair.batches(start)
        start += 2 * pair.num_images
