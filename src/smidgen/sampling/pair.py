"""A network and another one that it is led away from, called as one: what guidance needs when the
two are not one network with two labels.

    other + w (network(c) - other)

domain: other is the base without the delta, of no class (Zhong et al. 2025, arXiv 2504.01521,
equation 10); auto: a weaker delta, of the same class (Karras et al. 2024, arXiv 2406.02507). A
delta that is switched off is the base, so nothing else is loaded. B images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.core.edits import Weight
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError
from smidgen.fast.acting import acting
from smidgen.models.base import Base
from smidgen.models.labels import Labels

Call = Callable[[Tensor, Tensor, Tensor, Labels], Tensor]


class Pair:
    """`delta` and the `other` (None: the base alone), each with its labels; `null` is what the
    other is told, None: what the first is told. Both act in one batch through a bank where they can
    be stacked, else in two calls.
    """

    def __init__(
        self,
        base: Base,
        delta: tuple[Delta, Labels],
        other: tuple[Delta | None, Labels],
        null: int | None,
    ) -> None:
        self.base, self.both, self.null = base, (delta, other), null

    @cached_property
    def bank(self) -> Bank | None:
        """Both in one network; None where one batch cannot have them."""
        (delta, _), (other, _) = self.both
        return _bank_of(delta, other)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Within, `calls` may be made."""
        with nullcontext() if self.bank is None else acting(self.bank, self.base.denoiser):
            yield

    def calls(self, call: Call, num: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """(x, t, labels) -> output of B = `num` images, or of twice as many, of which the second
        half goes through the other network. `call` is the network as it is then.
        """
        (_, labels), _ = self.both

        def stacked(x: Tensor, t: Tensor, shown: Tensor) -> Tensor:
            assert self.bank is not None, "there is a bank"
            slots = torch.zeros(len(x), dtype=torch.long)
            slots[num:] = 1 if len(self.bank) == 2 else -1
            self.bank.choose(slots)
            return call(x, t, shown, labels)

        def by_turns(x: Tensor, t: Tensor, shown: Tensor) -> Tensor:
            outputs = []
            for number, (delta, known) in enumerate(self.both[: len(x) // num]):
                own = slice(number * num, (number + 1) * num)
                with acting(delta, self.base.denoiser):
                    outputs.append(call(x[own], t[own], shown[own], known))
            return torch.cat(outputs)

        return by_turns if self.bank is None else stacked


def _bank_of(delta: Delta, other: Delta | None) -> Bank | None:
    edits = delta.edits.values()
    if any(isinstance(edit, Weight) or edit.component for edit in edits):
        return None
    if other is None and any(isinstance(edit, Tokens) for edit in edits):
        return None  # which an image of a batch cannot be without
    try:
        return Bank([delta] if other is None else [delta, other])
    except SmidgenError:  # of other edits, or another method
        return None
