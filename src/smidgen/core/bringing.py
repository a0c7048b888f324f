"""How weights that are kept outside a device come to it, each when its module runs: copied from the
memory of the machine, or from the parts that several processes have of it.

On a GPU the next one travels, on a stream of its own, while the one before is computed with. Which
is next is what came next the last time: a training asks for the same weights in the same order at
every step, forwards, recomputing and backwards. A wrong guess costs time alone, and processes that
ask for the same weights in the same order guess alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Request(NamedTuple):
    """What was asked for: the id of a weight, what for, and in which of the passes, since a block
    that is recomputed asks as in the forward pass and goes on otherwise.
    """

    own: int
    again: bool
    backward: bool


class Early(NamedTuple):
    """A weight that is on its way; on a GPU with what tells that it has arrived."""

    own: Tensor
    brought: Tensor
    arrived: Any


class Group(NamedTuple):
    """Processes that have a part of each weight: the place of this one among `count`, and what
    gives each of them all parts (n) of a weight in order, (count n), once all of them call it.
    """

    rank: int
    count: int
    gather: Callable[[Tensor], Tensor]


class Bringing:
    """Weights on `device`, copied, or gathered from a `group`; `ahead`: one of them early, None:
    where that is of use.
    """

    def __init__(
        self, device: torch.device, group: Group | None = None, *, ahead: bool | None = None
    ) -> None:
        self.device = torch.empty(0, device=device).device  # with its number, as of its tensors
        self.group = group
        self._asked = ahead
        self.ahead = device.type == "cuda" if ahead is None else ahead
        self._next: dict[Request, Tensor] = {}
        self._last: Request | None = None
        self._early: Early | None = None
        self._stream: Any = None

    def __deepcopy__(self, memo: Any) -> Bringing:
        """That of a copied network, which has weights of its own."""
        return self.elsewhere(self.device)

    def elsewhere(self, device: str | torch.device) -> Bringing:
        """As this one, to another device."""
        return Bringing(torch.device(device), self.group, ahead=self._asked)

    def __call__(self, own: Tensor, *, again: bool) -> Tensor:
        """A copy on the device, for nobody else, of a weight or of all its parts, flat; `again`:
        that the backward pass asks for what the forward pass had.
        """
        if not self.ahead:
            return self._copy(own)
        found, self._early = self._taken(own), None
        if self._last is not None:
            self._next[self._last] = own
        self._last = Request(id(own), again, torch._C._current_graph_task_id() != -1)
        following = self._next.get(self._last)
        if following is not None:
            self._early = self._started(following)
        return found

    def _copy(self, own: Tensor) -> Tensor:
        if self.group is not None:
            return self.group.gather(own.detach())
        return own.detach().to(self.device, non_blocking=True, copy=True)

    def _taken(self, own: Tensor) -> Tensor:
        if self._early is None or self._early.own is not own:
            return self._copy(own)
        if self._early.arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(self._early.arrived)
            self._early.brought.record_stream(current)
        return self._early.brought

    def _started(self, own: Tensor) -> Early:
        if self.device.type != "cuda":
            return Early(own, self._copy(own), None)
        self._stream = self._stream or torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            brought = self._copy(own)
        return Early(own, brought, self._stream.record_event())


def resting(weight: Tensor, device: torch.device) -> Tensor:
    """`weight` as it waits for `device`: for a GPU in memory from which that reads by itself."""
    return weight.pin_memory() if device.type == "cuda" and not weight.is_meta else weight
