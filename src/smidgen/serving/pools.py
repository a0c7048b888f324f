"""Which deltas are in the network while images form: banks of slots, filled when they are needed.

Deltas of the same edits share a bank, whose slots the least recently used one leaves for the next.
What a batch cannot mix (copies of weights, edits in text encoders) acts alone.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError
from smidgen.fast.acting import acting

Key = Hashable  # what tells a delta, and what its file held, from others


class Pool:
    """Deltas that may act in one call of the network. A key that is held keeps its slot."""

    def __init__(self, room: int, acted: Delta | Bank | None) -> None:
        self.acted = acted
        self.slots: OrderedDict[Key, int] = OrderedDict()  # the least recently used first
        self.users: Counter[Key] = Counter()
        self._free = list(range(room))

    @property
    def takes_base(self) -> bool:
        """Whether images of the base itself may be in its calls."""
        edits = () if self.acted is None else self.acted.edits.values()
        if isinstance(self.acted, Bank):
            return not any(isinstance(edit.template, Tokens) for edit in self.acted.edits.values())
        return not edits

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held."""
        return not self.users

    def hold(self, key: Key, delta: Delta) -> bool:
        """Whether the delta is in a slot now, to stay there until it is let go.

        Raises: SmidgenError if it does not fit into this pool.
        """
        if key not in self.slots:
            if isinstance(self.acted, Bank):
                self.acted.check(delta)
            else:
                raise SmidgenError("this pool has one delta, and this is another one")
            slot = self._free.pop() if self._free else self._left()
            if slot is None:
                return False
            self.acted.replace(slot, delta)
            self.slots[key] = slot
        self.slots.move_to_end(key)
        self.users[key] += 1
        return True

    def put(self, key: Key) -> None:
        """The delta that the pool was made of has this key, and is held."""
        self.slots[key] = self._free.pop(0)
        self.users[key] += 1

    def let_go(self, key: Key) -> None:
        """One that held the key no longer does."""
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]

    def _left(self) -> int | None:
        """The slot of the least recently used delta that nothing holds, which is put out."""
        for key in self.slots:
            if key not in self.users:
                return self.slots.pop(key)
        return None

    def choose(self, keys: Sequence[Key | None]) -> None:
        """The delta of each row of the next call; None is the base."""
        if isinstance(self.acted, Bank):
            slots = [-1 if key is None else self.slots[key] for key in keys]
            self.acted.choose(torch.tensor(slots))

    @contextmanager
    def acting(self, network: nn.Module) -> Iterator[None]:
        """Within, calls of the network have these deltas."""
        with nullcontext() if self.acted is None else acting(self.acted, network):
            yield


class Pools:
    """All pools of one network, `most` at once, of `slots` deltas each; `base` has no delta."""

    def __init__(self, network: nn.Module, slots: int, most: int = 4) -> None:
        self.network, self._num_slots, self._most = network, slots, most
        self.base = Pool(0, None)
        self.pools: list[Pool] = []  # the least recently used first

    def hold(self, key: Key, delta: Delta) -> Pool | None:
        """The pool in which the delta is now, held; None while all room is taken by others."""
        if all(edit.component for edit in delta.edits.values()):
            return self.base  # of such a delta nothing acts in this network
        for pool in (*self._with(key), *self.pools):
            try:
                held = pool.hold(key, delta)
            except SmidgenError:  # of other edits
                continue
            self._used(pool)
            return pool if held else None
        if len(self.pools) >= self._most:
            idle = next((pool for pool in self.pools if pool.is_idle), None)
            if idle is None:
                return None
            self.pools.remove(idle)
        pool = self._made_of(delta)
        pool.put(key)
        self.pools.append(pool)
        return pool

    def let_go(self, pool: Pool, key: Key) -> None:
        """One image less needs this delta."""
        pool.let_go(key)

    @property
    def resident(self) -> int:
        """Deltas in slots."""
        return sum(len(pool.slots) for pool in self.pools)

    def has(self, key: Key) -> bool:
        """Whether the delta is in a slot already."""
        return any(True for _ in self._with(key))

    def _with(self, key: Key) -> Iterator[Pool]:
        return (pool for pool in self.pools if key in pool.slots)

    def _used(self, pool: Pool) -> None:
        self.pools.remove(pool)
        self.pools.append(pool)

    def _made_of(self, delta: Delta) -> Pool:
        try:
            # in float32, whatever the first one is kept in: others may be finer
            return Pool(self._num_slots, Bank([delta.clone().float()] * self._num_slots))
        except SmidgenError:  # what a batch cannot mix
            return Pool(1, delta)
