"""The modulations of a DiT for many steps of a sampling at once, instead of anew in each step.

What a block does to all tokens of an image, its shifts, scales and gates, depends on time and label
alone, and a sampler knows its times beforehand. For K times and R labels one product a block,

    W silu(t_embedder(t_k) + y_embedder(y_r)) + b        for all k and r,

takes the place of K products of a few rows, each of which reads all of W: the adaLN weights are a
third of a DiT. B images, E numbers a part: 6 D of a block, 2 D of the final layer, D the width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int, Shaped
from torch import Tensor

# (time, label) pairs at once: 100 MB for DiT-XL/2 in float32. More rows make no product faster.
PAIRS = 128

# (times, labels) (P,) -> the modulations (P or more, E) of each part, in their order
Compute = Callable[[Tensor, Tensor], Sequence[Tensor]]
# number of a part -> the modulations (B, E) of the images
Modulation = Callable[[int], Tensor]


@dataclass(frozen=True)
class Window:
    """The modulations of K consecutive times, from number `first` on, for R columns of `told`."""

    first: int
    told: Int[Tensor, "F R"]
    tables: tuple[Float[Tensor, "K R E"], ...]

    def of(self, number: int, told: Int[Tensor, "F B"]) -> Modulation | None:
        """Those of the time of this number for these images; None if one of both is not here."""
        step = number - self.first
        same = (self.told[:, None] == told[:, :, None]).all(0)  # (B, R)
        if not 0 <= step < len(self.tables[0]) or not bool(same.any(1).all()):
            return None
        rows = same.int().argmax(1)
        return lambda part: self.tables[part][step, rows]


class Ahead:
    """Modulations at the times of a sampler, in the order in which it comes to them."""

    def __init__(self, times: Shaped[Tensor, " T"]) -> None:
        self.times = times
        self._numbers = {float(time): number for number, time in enumerate(times)}
        self._window: Window | None = None

    def modulation(
        self, t: Tensor, told: Int[Tensor, "F B"], distinct: bool, compute: Compute
    ) -> Modulation | None:
        """Those of images at times t (B,); None if these are several or unknown, or the images are
        told too much for two steps at once. `told` is all that images differ by besides: the label
        first, and with a bank the slot, with which rows cannot be made `distinct`.
        """
        number = self._numbers.get(float(t[0]))
        if number is None or bool((t != t[0]).any()):
            return None
        found = None if self._window is None else self._window.of(number, told)
        if found is None:
            columns = told.unique(dim=1) if distinct else told
            times = self.times[number : number + PAIRS // columns.shape[1]].to(t)
            if len(times) < 2:
                return None
            self._window = _window(number, times, columns, compute)
            found = self._window.of(number, told)
        return found


def _window(number: int, times: Tensor, told: Tensor, compute: Compute) -> Window:
    """Time after time all columns, so that a bank's slots, which it repeats, fit all."""
    num = told.shape[1]
    parts = compute(times.repeat_interleave(num), told[0].repeat(len(times)))
    shape = (len(times), num)
    tables = tuple(part[: len(times) * num].unflatten(0, shape) for part in parts)
    return Window(number, told, tables)
