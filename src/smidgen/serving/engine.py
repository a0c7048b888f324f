"""The engine: images of many requests form in one batch, which they enter and leave at every step.

Each image runs the code that `smidgen sample` runs (sampling/draw.py), in a greenlet of its own
that stops where that code calls the network. A tick gathers what all of them ask, calls the network
once for each pool of deltas, and lets each go on with its part of the output: steps, samplers,
guidance and deltas may differ from image to image, and no image knows of another.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import torch
from torch import Tensor

from smidgen.errors import SmidgenError, UsageError
from smidgen.models.base import Base
from smidgen.serving.batch import Part, calls_of
from smidgen.serving.job import Job, joined
from smidgen.serving.pools import Pool, Pools

PASSED = 64  # images that may be begun before an older one that waits for a slot

logger = logging.getLogger(__name__)


class Full(SmidgenError):
    """So many images wait already that no more are taken; `seconds` until it is worth asking."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} images wait already; ask again in {seconds} s")
        self.seconds = seconds


class Late(SmidgenError):
    """An image took longer than is allowed."""


class Stopping(SmidgenError):
    """The server takes no more images."""


@dataclasses.dataclass
class Counts:
    """What the engine has done since it began; more `calls` than `ticks` is what it costs that
    deltas which cannot share a batch are mixed.
    """

    images: int = 0
    failed: int = 0
    ticks: int = 0
    calls: int = 0
    rows: int = 0
    seconds: float = 0.0  # in which images formed


class Engine:
    """Draws images of one base in a thread of its own, `batch` at once; `waiting` more may wait."""

    def __init__(self, base: Base, *, slots: int, batch: int, waiting: int) -> None:
        self.base, self._batch, self._most_waiting = base, batch, waiting
        self.pools = Pools(base.denoiser, slots)
        self.counts = Counts()
        self._queue: deque[Job] = deque()
        self._active: list[Job] = []
        self._attached: tuple[Pool, ExitStack] | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="smidgen-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Images that wait."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Images that form."""
        return len(self._active)

    @property
    def is_alive(self) -> bool:
        """Whether images can be drawn."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, jobs: Sequence[Job]) -> None:
        """All of these images, or none. Raises: Full; Stopping; UsageError for too many at once."""
        with self._changed:
            if not self.is_alive:
                raise Stopping("the server is stopping; ask another one")
            if len(jobs) > self._most_waiting:
                raise UsageError(
                    f"{len(jobs)} images in one request; at most {self._most_waiting} may wait here"
                )
            if len(self._queue) + len(jobs) > self._most_waiting:
                raise Full(len(self._queue), self._seconds_of(len(self._queue)))
            self._queue.extend(jobs)
            self._changed.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Nobody waits for these any more."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def leave(self) -> None:
        """Take no more."""
        self._stopping = True

    def stop(self, seconds: float = 30.0) -> None:
        """Take no more, draw what was taken, for so long at most."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)

    def _seconds_of(self, images: int) -> int:
        done = max(self.counts.images, 1)
        return max(1, round(images * self.counts.seconds / done))

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._active or self._stopping):
                    self._detach()
                    self._changed.wait()
                if self._stopping and not (self._queue or self._active):
                    break
            began = time.monotonic()
            try:
                self._leave_ended()
                self._admit()
                self._tick()
            except Exception as error:  # a mistake of this program: the images end, the server not
                logger.exception("a tick failed")
                with suppress(Exception):
                    self._detach()
                for job in list(self._active):
                    self._end(job, error)
            self.counts.seconds += time.monotonic() - began
        self._detach()

    def _leave_ended(self) -> None:
        """What is cancelled or late goes."""
        now = time.monotonic()
        with self._changed:
            waiting = list(self._queue)
        for job in (*self._active, *waiting):
            if job.cancelled or now > job.deadline:
                late = Late(f"the image took over {job.seconds:g} s, waiting included")
                self._end(job, None if job.cancelled else late)

    def _end(self, job: Job, error: BaseException | None) -> None:
        job.end(error)
        self.counts.failed += 1
        self._remove(job)

    def _remove(self, job: Job) -> None:
        for pool, key in job.pools:
            if key is not None:
                self.pools.let_go(pool, key)
        job.pools = []
        if job in self._active:
            self._active.remove(job)
        with self._changed:
            if job in self._queue:
                self._queue.remove(job)

    def _admit(self) -> None:
        """Begin what there is room for: in order, but that an image whose delta is there already
        may pass one that waits for a slot.
        """
        with self._changed:
            waiting = list(self._queue)
        blocked: Job | None = None
        for job in waiting:
            if len(self._active) >= self._batch:
                return
            if blocked is not None:
                if blocked.passed >= PASSED:
                    return
                if not all(key is None or self.pools.has(key) for key in job.keys):
                    continue
            try:
                held = self._hold(job)
            except Exception as error:  # such as no memory for one more bank
                logger.exception("a delta cannot be brought into the network")
                self._end(job, error)
                continue
            if not held:
                blocked = blocked or job
                continue
            if blocked is not None:
                blocked.passed += 1
            with self._changed:
                self._queue.remove(job)
            self._active.append(job)
            job.begin()
            self._settle(job)

    def _hold(self, job: Job) -> bool:
        """Whether both sides of a job are in slots."""
        for key, delta in zip(job.keys, job.deltas, strict=True):
            held = self.pools.base
            if key is not None and delta is not None:
                held = self.pools.hold(key, delta)
            if held is None:
                for pool, other in job.pools:
                    if other is not None:
                        self.pools.let_go(pool, other)
                job.pools = []
                return False
            job.pools.append((held, None if held is self.pools.base else key))
        return True

    def _settle(self, job: Job) -> None:
        """An image that is done leaves."""
        if job.asked is None:
            self.counts.images += job.has_image
            self.counts.failed += not job.has_image
            self._remove(job)

    def _tick(self) -> None:
        """One step of all images."""
        if not self._active:
            return
        self.counts.ticks += 1
        outputs: dict[tuple[Job, int], Tensor] = {}
        jobs = list(self._active)
        for pool, parts in calls_of(jobs, self.pools.base):
            self.counts.calls += 1
            try:
                outputs |= self._called(pool, parts)
            except Exception as error:
                logger.exception("a batch of %d images failed", len(parts))
                for part in parts:
                    part.job.end(error)
        for job in jobs:
            if job.asked is not None:
                found = [outputs[job, side] for side in (0, 1) if (job, side) in outputs]
                if sum(map(len, found)) == len(job.asked.x):
                    job.go_on(torch.cat(found))
            self._settle(job)

    def _called(self, pool: Pool, parts: Sequence[Part]) -> dict[tuple[Job, int], Tensor]:
        """The network's output for each part."""
        self._attach(pool)
        sizes = [len(part.x) for part in parts]
        pool.choose([part.key for part in parts for _ in range(len(part.x))])
        self.counts.rows += sum(sizes)
        output = self.base.family.predict(
            self.base.denoiser,
            torch.cat([part.x for part in parts]),
            torch.cat([part.t for part in parts]),
            joined([part.condition for part in parts]),
        )
        split = output.split(sizes)
        return {(part.job, part.side): one for part, one in zip(parts, split, strict=True)}

    def _attach(self, pool: Pool) -> None:
        """Let the deltas of this pool act, unless they do."""
        if self._attached is not None and self._attached[0] is pool:
            return
        self._detach()
        with ExitStack() as stack:
            stack.enter_context(pool.acting(self.base.denoiser))
            self._attached = pool, stack.pop_all()

    def _detach(self) -> None:
        attached, self._attached = self._attached, None
        if attached is not None:
            attached[1].close()
