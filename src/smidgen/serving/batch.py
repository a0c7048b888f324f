"""What of many images goes into one call of the network. R rows of a part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from smidgen.hosts.family import Condition
from smidgen.serving.job import Job
from smidgen.serving.pools import Key, Pool


class Part(NamedTuple):
    """What one side of a job asks, x (R, C, H, W) at t (R,): 0 is its delta, 1 what guidance leads
    away from. `key` is that of its delta in the `pool`, None the base.
    """

    job: Job
    side: int
    pool: Pool
    key: Key | None
    x: Tensor
    t: Tensor
    condition: Condition

    @property
    def form(self) -> tuple[object, ...]:
        """What parts of one call have alike."""
        return tuple(
            (name, value.shape[1:], value.dtype) for name, value in sorted(self.condition.items())
        )


def calls_of(jobs: Sequence[Job], base: Pool) -> Iterator[tuple[Pool, list[Part]]]:
    """The calls of a tick: what may be in one batch, by pool and by the form of its condition.
    Images of the base go along with those of deltas where they can, else in calls of `base`.
    """
    found: dict[tuple[Pool, object], list[Part]] = {}
    alone: list[Part] = []
    for job in jobs:
        for part in _parts_of(job):
            if part.pool is base:
                alone.append(part)
            else:
                found.setdefault((part.pool, part.form), []).append(part)
    for part in alone:
        host = next((p for p, form in found if p.takes_base and form == part.form), None)
        found.setdefault((host or base, part.form), []).append(part)
    for (pool, _), parts in found.items():
        yield pool, parts


def _parts_of(job: Job) -> Iterator[Part]:
    asked = job.asked
    if asked is None:
        return
    for side, rows in enumerate((slice(asked.own), slice(asked.own, None))):
        if len(asked.x[rows]):
            condition = {name: value[rows] for name, value in asked.condition.items()}
            pool, key = job.pools[side]
            yield Part(job, side, pool, key, asked.x[rows], asked.t[rows], condition)
