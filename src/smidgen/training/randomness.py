"""Where a training's randomness comes from: named CPU generators and shuffled passes over the data.

All of it is drawn on the CPU, so that a seed means the same run on every device, and all of it can
be saved and put back, so that a resumed run draws what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

STREAMS = ("latents", "labels", "timesteps", "noise")
TAGS = "tags"  # a stream of runs that shuffle tags


def derived_seed(seed: int, *name: str | int) -> int:
    """Another seed for each name; names do not share randomness however close the seeds are."""
    digest = hashlib.sha256("/".join(map(str, (seed, *name))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1  # manual_seed takes 63 bits on every device


def generator_for(seed: int, *name: str | int) -> torch.Generator:
    """A CPU generator of its own for this name."""
    return torch.Generator().manual_seed(derived_seed(seed, *name))


class Streams:
    """One generator for each thing that a training step draws; `tags`: for the order of tags too,
    which other runs neither draw nor keep.
    """

    def __init__(self, seed: int, *, tags: bool = False) -> None:
        self._names = (*STREAMS, TAGS) if tags else STREAMS
        self.latents = generator_for(seed, "latents")
        self.labels = generator_for(seed, "labels")
        self.timesteps = generator_for(seed, "timesteps")
        self.noise = generator_for(seed, "noise")
        self.tags = generator_for(seed, TAGS)

    def state(self) -> dict[str, Tensor]:
        """Each generator's state by name, uint8."""
        return {name: getattr(self, name).get_state() for name in self._names}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put every generator where `state` was taken."""
        for name in self._names:
            getattr(self, name).set_state(state[name])


class Shuffle:
    """Endless passes over `indices`, each in a fresh order; `epoch` and `position` say where it is.

    Batches are always full: one may end a pass and begin the next. Shuffles of other names have
    orders of their own.
    """

    def __init__(self, indices: Tensor, seed: int, name: str = "order") -> None:
        self._indices = indices
        self._seed = seed
        self._name = name
        self.seek(0, 0)

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def passes(self) -> float:
        """Passes that were made, the last of them in part."""
        return self.epoch + self.position / len(self)

    def seek(self, epoch: int, position: int) -> None:
        """Go to an epoch and to the number of images already taken from it."""
        self.epoch, self.position = epoch, position
        generator = generator_for(self._seed, self._name, epoch)
        self._order = self._indices[torch.randperm(len(self._indices), generator=generator)]

    def take(self, count: int) -> Tensor:
        """The next `count` indices."""
        parts = []
        while count:
            if self.position == len(self._order):
                self.seek(self.epoch + 1, 0)
            part = self._order[self.position : self.position + count]
            self.position += len(part)
            count -= len(part)
            parts.append(part)
        return torch.cat(parts)
