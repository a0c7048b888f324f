"""A whole DiT with the edits of a plan: what is called in place of the network itself.

How its blocks run is in trunk.py, when this is taken in acting.py. B images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from smidgen.core.edits import Scale
from smidgen.core.mixed import Mixed
from smidgen.errors import SmidgenError
from smidgen.fast.ahead import Ahead, Modulation
from smidgen.fast.eight_bit import eight_bit_linears
from smidgen.fast.names import FrozenPrecision
from smidgen.fast.plan import PRODUCTS, Plan, in_the_way
from smidgen.fast.trunk import Branch, How, modulated, run_block, run_final, whole_block
from smidgen.models.dit import Block, DiT

# Products of fewer rows run other kernels, which round differently: conditions (B, D) are filled up
# to so many, so that an image is the same in any batch. Measured for 1 to 1024 rows on an AVX-512
# CPU; GPUs and other CPUs promise nothing of the kind, so there a last bit may differ.
ROWS = 4
NEAR_ZERO = 1e-3  # of a gain: from y / gain its gradient would lose what float32 has


class FastDiT:
    """A DiT with the edits of a plan, called as the network itself is; where gradients are asked
    for, products with frozen weights as `frozen_precision` says.
    """

    def __init__(
        self, network: DiT, plan: Plan, frozen_precision: FrozenPrecision = "exact"
    ) -> None:
        self.network, self.plan = network, plan
        self._blocks = [block for block in network.blocks if isinstance(block, Block)]
        edits = (*plan.inside.values(), *plan.outside.values())
        self._mixed = next((edit for edit in edits if isinstance(edit, Mixed)), None)
        self._ahead: Ahead | None = None
        self._eight_bit = eight_bit_linears(network, frozen_precision)
        self._gains = [
            edit.gain
            for places in plan.blocks
            for place in PRODUCTS
            for edit in (places[place].affine if place in places else ())
            if isinstance(edit, Scale)
        ]

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        network = self.network
        if not torch.compiler.is_compiling() and in_the_way(network):
            raise SmidgenError(
                "hooks have come to the blocks of the network, which the fast path would pass by; "
                "attach what they belong to first, or do without the fast path"
            )
        how = How(self._foldable(), self._eight_bit)
        tokens = network.x_embedder(x) + network.pos_embed
        try:
            if network.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._recomputed(tokens, self._condition(t, y, x.dtype), how)
            else:
                tokens = self._layers(tokens, self._modulation(x, t, y, how), how)
        finally:
            for edit in self.plan.inside.values():
                edit.forget()
        return network.unpatchify(tokens)

    @contextmanager
    def scheduled(self, times: Tensor) -> Iterator[None]:
        """Until the end of the `with` calls without gradients come at these times, in this order,
        and no weight changes: what depends on times and labels alone is computed ahead.
        """
        self._ahead = Ahead(times)
        try:
            yield
        finally:
            self._ahead = None

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """All products are exact until the end of the `with`."""
        kept, self._eight_bit = self._eight_bit, {}
        try:
            yield
        finally:
            self._eight_bit = kept

    def _slots(self, y: Tensor) -> Tensor:
        """The slot of each image of a bank."""
        assert self._mixed is not None, "there is a bank"
        return self._mixed.slots(y, self._mixed.sites[0]).to(y)

    def _foldable(self) -> bool:
        """Whether the gains may go into weights: not where that would spoil their gradients."""
        if not self._gains or not torch.is_grad_enabled():
            return True
        if torch.compiler.is_compiling():  # which would be broken off to see their values
            return False
        if is_fake(self._gains[0]):  # only counted
            return True
        return bool(
            torch.stack([gain.detach().abs().min() for gain in self._gains]).min() > NEAR_ZERO
        )

    def _condition(self, t: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
        """The activated condition of each image, (B or more, D)."""
        if len(t) < ROWS and not torch.is_grad_enabled():
            times = -(-ROWS // len(t))
            t, y = t.repeat(times), y.repeat(times)
        return functional.silu(self.network.t_embedder(t, dtype) + self.network.y_embedder(y))

    def _modulation(self, x: Tensor, t: Tensor, y: Tensor, how: How) -> Modulation:
        """What gives the modulations of images x of each part: those computed ahead, or now."""

        parts = (*self._blocks, self.network.final_layer)

        def of(c: Tensor, number: int) -> Tensor:
            return modulated(parts[number], self.plan.blocks[number], c, how)

        def all_of(t: Tensor, y: Tensor) -> list[Tensor]:
            c = self._condition(t, y, x.dtype)
            return [of(c, number) for number in range(len(parts))]

        found, eager = None, not torch.compiler.is_compiling()
        if self._ahead is not None and eager and not torch.is_grad_enabled():
            told = [y] if self._mixed is None else [y, self._slots(y)]
            found = self._ahead.modulation(t, torch.stack(told), self._mixed is None, all_of)
        return found or partial(of, self._condition(t, y, x.dtype))

    def _layers(self, x: Tensor, modulation: Modulation, how: How) -> Tensor:
        branch: Branch | None = None
        *inner, last = self.plan.blocks
        for number, (block, places) in enumerate(zip(self._blocks, inner, strict=True)):
            x, branch = run_block(block, places, x, branch, modulation(number), how)
        return run_final(self.network.final_layer, last, x, branch, modulation(len(inner)), how)

    def _recomputed(self, x: Tensor, c: Tensor, how: How) -> Tensor:
        """The same, of each block nothing kept but what comes in."""
        *inner, last = self.plan.blocks
        for block, places in zip(self._blocks, inner, strict=True):
            x = checkpoint(whole_block, block, places, x, c, how, use_reentrant=False)
        final = self.network.final_layer
        return run_final(final, last, x, None, modulated(final, last, c, how), how)
