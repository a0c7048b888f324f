"""One image of a server: the code that `smidgen sample` runs for it, in a greenlet of its own that
stops where that code calls the network. R rows of a call: 1, or 2 where guidance leads away from
something.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import NamedTuple

import greenlet
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError
from smidgen.hosts.family import Condition
from smidgen.models.labels import Labels
from smidgen.sampling.draw import Drawing, as_bytes, draw_batch
from smidgen.sampling.pair import Call, Pair
from smidgen.serving.pools import Key, Pool

Image = NDArray[np.uint8]  # (H, W, 3)

logger = logging.getLogger(__name__)


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
            shown = as_bytes(base.codec.decode(x0))[0].permute(1, 2, 0).cpu().numpy()
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
            return joined(parts)

        labels = Labels(names=self.both[0][1].names, conditions=conditions)

        def both(x: Tensor, t: Tensor, shown: Tensor) -> Tensor:
            self._job._own = num
            return call(x, t, shown, labels)

        return both


def joined(conditions: Sequence[Condition]) -> Condition:
    """Those of several as of one batch."""
    return {name: torch.cat([one[name] for one in conditions]) for name in conditions[0]}
