"""The forward pass of a DiT with a delta folded into it as far as that is exact.

A vector that acts on all tokens alike is never multiplied with tokens: a gain behind a sub-layer
goes into its gate, (B, D) numbers instead of (B, N, D); created norm affines into the modulation; a
gain of queries, keys and values into the rows of their weight; a bias into the bias. What cannot be
folded acts as the function that it is, at its place. B images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from smidgen.core.edits import Scale
from smidgen.errors import SmidgenError
from smidgen.fast.eight_bit import EightBit, eight_bit_linears
from smidgen.fast.functions import add_gated, add_norm_modulate, frozen_linear, norm_modulate
from smidgen.fast.names import FrozenPrecision
from smidgen.fast.plan import PRODUCTS, Place, Plan, in_the_way
from smidgen.models.dit import Block, DiT, FinalLayer, attend

NOTHING = Place()
# Products of fewer rows run other kernels, which round differently: conditions (B, D) are filled up
# to so many, so that an image is the same in any batch. Measured for 1 to 1024 rows on an AVX-512
# CPU; GPUs and other CPUs promise nothing of the kind, so there a last bit may differ.
ROWS = 4
NEAR_ZERO = 1e-3  # of a gain: from y / gain its gradient would lose what float32 has


class Branch(NamedTuple):
    """What is still to be added to the residual stream: gate * p, which holds the trained bias."""

    p: Tensor
    gate: Tensor
    bias: Tensor | None


class How(NamedTuple):
    """How products are computed: whether gains may go into weights, and which linears have a form
    in 8 bit for passes in which gradients are asked for.
    """

    fold: bool
    eight_bit: Mapping[nn.Linear, EightBit]

    def product(
        self, h: Tensor, linear: nn.Linear, bias: Tensor | None, gain: Tensor | None = None
    ) -> Tensor:
        """gain * (weight h) + bias."""
        weight = linear.weight
        form = None
        if torch.is_grad_enabled() and not weight.requires_grad:
            form = self.eight_bit.get(linear)
        if gain is None and form is None:
            return functional.linear(h, weight, bias)
        return frozen_linear(h, weight, gain, bias, form)


class FastDiT:
    """A DiT with the edits of a plan, called as the network itself is; where gradients are asked
    for, products with frozen weights as `frozen_precision` says.
    """

    def __init__(
        self, network: DiT, plan: Plan, frozen_precision: FrozenPrecision = "exact"
    ) -> None:
        self.network, self.plan = network, plan
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
        if len(x) < ROWS and not torch.is_grad_enabled():
            t, y = (torch.cat([each] * ROWS)[:ROWS] for each in (t, y))
        c = network.t_embedder(t, x.dtype) + network.y_embedder(y)
        x = network.x_embedder(x) + network.pos_embed
        try:
            x = self._layers(x, functional.silu(c), How(self._foldable(), self._eight_bit))
        finally:
            for edit in self.plan.inside.values():
                edit.forget()
        return network.unpatchify(x)

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """All products are exact until the end of the `with`."""
        kept, self._eight_bit = self._eight_bit, {}
        try:
            yield
        finally:
            self._eight_bit = kept

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

    def _layers(self, x: Tensor, c: Tensor, how: How) -> Tensor:
        recomputed = self.network.gradient_checkpointing and torch.is_grad_enabled()
        branch: Branch | None = None
        for block, places in zip(self.network.blocks, self.plan.blocks, strict=False):
            assert isinstance(block, Block)
            if recomputed:
                x = checkpoint(_whole_block, block, places, x, c, how, use_reentrant=False)
            else:
                x, branch = run_block(block, places, x, branch, c, how)
        return _run_final(self.network.final_layer, self.plan.blocks[-1], x, branch, c, how)


def run_block(
    block: Block,
    places: Mapping[str, Place],
    x: Tensor,
    branch: Branch | None,
    c: Tensor,
    how: How,
) -> tuple[Tensor, Branch | None]:
    """One block: the residual stream (B, N, D) and what is still to be added to it, in and out, so
    that the addition and the next norm are one. `c` (B or more, D) is the activated condition.
    """

    modulation = _linear(c, block.adaLN_modulation.linear, places["modulation"], x, how)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation[: len(x)].chunk(6, dim=1)

    x, h = _enter(
        x,
        branch,
        places["block.in"],
        places["norm1.in"],
        block.norm1,
        scale1,
        shift1,
        places["norm1.out"],
    )
    qkv = _linear(places["qkv.in"].apply(h), block.attn.qkv, places["qkv.out"], x, how)
    heads = qkv.unflatten(2, (3, block.attn.num_heads, -1))
    q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
    attended = places["proj.in"].apply(attend(q, k, v).transpose(1, 2).flatten(2))
    branch = _leave(attended, block.attn.proj, places["attn.out"], x, gate1, how)

    x, h = _enter(
        x, branch, NOTHING, places["norm2.in"], block.norm2, scale2, shift2, places["norm2.out"]
    )
    hidden = block.mlp.act(
        _linear(places["fc1.in"].apply(h), block.mlp.fc1, places["fc1.out"], x, how)
    )
    branch = _leave(places["fc2.in"].apply(hidden), block.mlp.fc2, places["mlp.out"], x, gate2, how)

    if places["block.out"].functions:
        return places["block.out"].apply(_settled(x, branch)), None
    return x, branch


def _run_final(
    final: FinalLayer,
    places: Mapping[str, Place],
    x: Tensor,
    branch: Branch | None,
    c: Tensor,
    how: How,
) -> Tensor:
    """The patches (B, N, P) of what comes out of the last block."""

    modulation = _linear(c, final.adaLN_modulation.linear, places["modulation"], x, how)
    shift, scale = modulation[: len(x)].chunk(2, dim=1)
    norm = final.norm_final
    _, h = _enter(x, branch, NOTHING, places["norm.in"], norm, scale, shift, places["norm.out"])
    return _linear(places["linear.in"].apply(h), final.linear, places["linear.out"], x, how)


def _whole_block(
    block: Block, places: Mapping[str, Place], x: Tensor, c: Tensor, how: How
) -> Tensor:
    """A block that leaves nothing to be added, so that x alone is kept of it."""
    return _settled(*run_block(block, places, x, None, c, how))


def _linear(h: Tensor, linear: nn.Linear, place: Place, x: Tensor, how: How) -> Tensor:
    """after + gain * (before + linear(h)), then the functions; x is the residual stream."""
    before, gain, after = vectors = place.vectors(x, linear.weight.dtype)
    if any(vector is not None and vector.ndim == 2 for vector in vectors):
        return place.apply(_of_each(how.product(h, linear, linear.bias), *vectors))
    bias = linear.bias if before is None else linear.bias + before
    if gain is None:
        return place.apply(how.product(h, linear, bias))
    bias = gain * bias if after is None else after + gain * bias
    if not how.fold or linear.weight.requires_grad or _smaller(h, linear.weight):
        y = how.product(h, linear, None)
        return place.apply(torch.addcmul(bias.to(y.dtype), y, gain.to(y.dtype)))
    return place.apply(how.product(h, linear, bias, gain))


def _enter(
    x: Tensor,
    branch: Branch | None,
    stream: Place,
    before: Place,
    norm: nn.LayerNorm,
    scale: Tensor,
    shift: Tensor,
    behind: Place,
) -> tuple[Tensor, Tensor]:
    """The residual stream with the branch added, and what a sub-layer reads of it."""
    first, gain, after = behind.vectors(x, scale.dtype)
    m, s = 1 + scale, shift
    if first is not None:
        after = _sum(first if gain is None else first * gain, after)
    if after is not None:
        s = torch.addcmul(s, m, after)
    if gain is not None:
        m = m * gain
    if branch is None or stream.functions or before.functions:
        x = stream.apply(_settled(x, branch))
        return x, norm_modulate(before.apply(x), m, s, norm.eps)
    return add_norm_modulate(x, *branch, m, s, norm.eps)


def _leave(h: Tensor, linear: nn.Linear, place: Place, x: Tensor, gate: Tensor, how: How) -> Branch:
    """What a sub-layer adds, its gains in the gate; where there is more, all is done to p."""
    before, gain, after = place.vectors(x, linear.weight.dtype)
    if after is not None or place.functions:
        return Branch(_linear(h, linear, place, x, how._replace(fold=False)), gate, None)
    gate = gate if gain is None else gate * gain
    if before is not None and before.ndim == 2:
        p = how.product(h, linear, linear.bias)
        return Branch(_of_each(p, before, None, None), gate, None)
    bias = linear.bias if before is None else linear.bias + before
    p = how.product(h, linear, bias.detach())
    return Branch(p, gate, bias if bias.requires_grad else None)


def _of_each(y: Tensor, before: Tensor | None, gain: Tensor | None, after: Tensor | None) -> Tensor:
    """after + gain * (before + y) of vectors (B, E) for images y (B, N, E), or y (B or more, E) of
    conditions, of which the first B are meant.
    """
    if y.ndim == 3:
        before, gain, after = (
            v if v is None or v.ndim == 1 else v[:, None] for v in (before, gain, after)
        )
    else:
        y = y[: max(len(v) for v in (before, gain, after) if v is not None and v.ndim == 2)]
    y = y if before is None else y + before
    if gain is None:
        return y
    return y * gain if after is None else torch.addcmul(after, y, gain)


def _settled(x: Tensor, branch: Branch | None) -> Tensor:
    return x if branch is None else add_gated(x, *branch)


def _smaller(h: Tensor, weight: Tensor) -> bool:
    """Whether an image has fewer tokens than a row has weights, and no gradient is asked for. Not
    the batch decides: an image is drawn alike in any.
    """
    return not torch.is_grad_enabled() and h.shape[-2] < weight.shape[1]


def _sum(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b
