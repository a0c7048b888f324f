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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import ExitStack, suppress
from typing import NamedTuple

import greenlet
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.hosts.family import Condition
from smidgen.models.base import Base
from smidgen.models.labels import Labels
from smidgen.sampling.draw import Drawing, draw_batch
from smidgen.sampling.pair import Call, Pair
from smidgen.serving.pools import Key, Pool, Pools

Image = NDArray[np.uint8]  # (H, W, 3)

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


class Asked(NamedTuple):
    """What an image asks of the network: R rows, of which the first `own` are of its delta, the
    others of what guidance leads away from.
    """

    x: Tensor
    t: Tensor
    condition: Condition
    own: int


@dataclasses.dataclass(eq=False)
class Job:
    """One image. `keys` are those of the drawing's delta and of the other one of its pair, None
    where that is the base; `partials` says how many pictures are shown on the way, to `show`.
    """

    drawing: Drawing
    number: int
    keys: tuple[Key | None, Key | None]
    seconds: float
    partials: int = 0
    show: Callable[[int, Image], None] | None = None
    result: Future[Image] = dataclasses.field(default_factory=Future)
    cancelled: bool = False
    passed: int = 0

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.seconds
        self.asked: Asked | None = None
        self.pools: list[tuple[Pool, Key | None]] = []
        self.has_image = False
        self._own: int | None = None
        self._steps = 0
        self._greenlet: greenlet.greenlet | None = None

    @property
    def deltas(self) -> tuple[Delta | None, Delta | None]:
        """Those of its two sides."""
        pair = self.drawing.pair
        return self.drawing.delta, None if pair is None else pair.both[1][0]

    def begin(self) -> None:
        """Run to the first call of the network."""
        self._greenlet = greenlet.greenlet(self._draw)
        self._resume()

    def go_on(self, output: Tensor) -> None:
        """Run with this output to the next call, or to the end."""
        self.asked = None
        self._resume(output)

    def end(self, error: BaseException | None) -> None:
        """No more of it is wanted; None: by nobody."""
        if self._greenlet is not None and not self._greenlet.dead:
            self._greenlet.throw(greenlet.GreenletExit)
        self.asked = None
        self._answer(error)

    def _answer(self, found: Image | BaseException | None) -> None:
        """Tell whoever waits, who may have gone at this very moment; None: nobody does."""
        with suppress(InvalidStateError):
            if found is None:
                self.result.cancel()
            elif isinstance(found, BaseException):
                self.result.set_exception(found)
            else:
                self.result.set_result(found)
                self.has_image = True

    def _resume(self, *output: Tensor) -> None:
        assert self._greenlet is not None, "the job has begun"
        try:
            self._greenlet.switch(*output)
        except Exception as error:
            if not isinstance(error, SmidgenError):
                logger.exception("an image failed")
            self._answer(error)

    def _draw(self) -> None:
        pair = self.drawing.pair
        if pair is not None:
            pair = _Beside(pair, self)
        drawing = dataclasses.replace(self.drawing, pair=pair)
        image = draw_batch(drawing, [self.number], self._ask)[0]
        self._answer(image.permute(1, 2, 0).cpu().numpy())

    def _ask(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What draws calls this for the network: the output comes when the tick has it."""
        own = len(x) if self._own is None else self._own
        self.asked = Asked(x, t, condition, own)
        engine = greenlet.getcurrent().parent
        assert engine is not None, "jobs are begun by the engine"
        output = engine.switch()
        self._steps += 1
        self._show(x[:1].float(), t[:1], output[:1].float())
        return output

    def _show(self, x: Tensor, t: Tensor, output: Tensor) -> None:
        """What the image would be if this were its last step, at `partials` steps."""
        steps, base = len(self.drawing.route.times()), self.drawing.base
        done = self._steps * (self.partials + 1) // steps
        if self.show is None or self._steps == steps:
            return
        if done > (self._steps - 1) * (self.partials + 1) // steps:
            x0 = base.process.x0(base.process.predicted(output, x, t), x, t)
            pixels = (base.codec.decode(x0)[0] + 1) * 127.5
            shown = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
            self.show(done - 1, shown)


class _Beside(Pair):
    """A pair whose two networks are two parts of what its job asks."""

    def __init__(self, pair: Pair, job: Job) -> None:
        super().__init__(pair.base, *pair.both, pair.null)
        self._job = job

    def calls(self, call: Call, num: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """As of any pair."""

        def conditions(shown: Tensor) -> Condition:
            parts = [
                known.conditions(part)
                for (_, known), part in zip(self.both, shown.split(num), strict=False)
            ]
            return _joined(parts)

        labels = Labels(names=self.both[0][1].names, conditions=conditions)

        def both(x: Tensor, t: Tensor, shown: Tensor) -> Tensor:
            self._job._own = num
            return call(x, t, shown, labels)

        return both


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
                self._attached = None
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
        for pool, parts in self._calls(jobs):
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

    def _calls(self, jobs: Sequence[Job]) -> Iterator[tuple[Pool, list[_Part]]]:
        """The calls of a tick: what may be in one batch, by pool and by the form of its condition.
        Images of the base go along with those of deltas where they can.
        """
        found: dict[tuple[Pool, object], list[_Part]] = {}
        alone: list[_Part] = []
        for job in jobs:
            for part in _parts_of(job):
                if part.pool is self.pools.base:
                    alone.append(part)
                else:
                    found.setdefault((part.pool, part.form), []).append(part)
        for part in alone:
            host = next((p for p, form in found if p.takes_base and form == part.form), None)
            found.setdefault((host or self.pools.base, part.form), []).append(part)
        for (pool, _), parts in found.items():
            yield pool, parts

    def _called(self, pool: Pool, parts: Sequence[_Part]) -> dict[tuple[Job, int], Tensor]:
        """The network's output for each part."""
        self._attach(pool)
        sizes = [len(part.x) for part in parts]
        pool.choose([part.key for part in parts for _ in range(len(part.x))])
        self.counts.rows += sum(sizes)
        output = self.base.family.predict(
            self.base.denoiser,
            torch.cat([part.x for part in parts]),
            torch.cat([part.t for part in parts]),
            _joined([part.condition for part in parts]),
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
        if self._attached is not None:
            self._attached[1].close()
            self._attached = None


class _Part(NamedTuple):
    """What one side of a job asks."""

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


def _parts_of(job: Job) -> Iterator[_Part]:
    asked = job.asked
    if asked is None:
        return
    for side, rows in enumerate((slice(asked.own), slice(asked.own, None))):
        if len(asked.x[rows]):
            condition = {name: value[rows] for name, value in asked.condition.items()}
            pool, key = job.pools[side]
            yield _Part(job, side, pool, key, asked.x[rows], asked.t[rows], condition)


def _joined(conditions: Sequence[Condition]) -> Condition:
    """Those of several as of one batch."""
    return {name: torch.cat([one[name] for one in conditions]) for name in conditions[0]}
