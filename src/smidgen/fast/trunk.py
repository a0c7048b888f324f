"""The forward pass of a DiT with a delta folded into it as far as that is exact.

A vector that acts on all tokens alike is never multiplied with tokens: a gain behind a sub-layer
goes into its gate, (B, D) numbers instead of (B, N, D); created norm affines into the modulation; a
gain of queries, keys and values into the rows of their weight; a bias into the bias. What cannot be
folded acts as the function that it is, at its place. B images, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from smidgen.fast.eight_bit import EightBit
from smidgen.fast.functions import add_gated, add_norm_modulate, frozen_linear, norm_modulate
from smidgen.fast.plan import Place
from smidgen.models.dit import Block, FinalLayer, attend

NOTHING = Place()


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


def modulated(part: Block | FinalLayer, places: Mapping[str, Place], c: Tensor, how: How) -> Tensor:
    """Shifts, scales and gates (B or more, 6 D or 2 D) of activated conditions c."""
    return _linear(c, part.adaLN_modulation.linear, places["modulation"], c, how)


def run_block(
    block: Block,
    places: Mapping[str, Place],
    x: Tensor,
    branch: Branch | None,
    modulation: Tensor,
    how: How,
) -> tuple[Tensor, Branch | None]:
    """One block: the residual stream (B, N, D) and what is still to be added to it, in and out, so
    that the addition and the next norm are one. `modulation` is (B or more, 6 D).
    """

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


def run_final(
    final: FinalLayer,
    places: Mapping[str, Place],
    x: Tensor,
    branch: Branch | None,
    modulation: Tensor,
    how: How,
) -> Tensor:
    """The patches (B, N, P) of what comes out of the last block."""

    shift, scale = modulation[: len(x)].chunk(2, dim=1)
    norm = final.norm_final
    _, h = _enter(x, branch, NOTHING, places["norm.in"], norm, scale, shift, places["norm.out"])
    return _linear(places["linear.in"].apply(h), final.linear, places["linear.out"], x, how)


def whole_block(
    block: Block, places: Mapping[str, Place], x: Tensor, c: Tensor, how: How
) -> Tensor:
    """A block that leaves nothing to be added, so that x alone is kept of it."""
    modulation = modulated(block, places, c, how)
    return _settled(*run_block(block, places, x, None, modulation, how))


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
    """after + gain * (before + y) of vectors (B, E) for images y (B, N, E) or conditions (B, E)."""
    if y.ndim == 3:
        before, gain, after = (
            v if v is None or v.ndim == 1 else v[:, None] for v in (before, gain, after)
        )
    y = y if before is None else y + before
    if gain is None:
        return y
    return y * gain if after is None else torch.addcmul(after, y, gain)


def _settled(x: Tensor, branch: Branch | None) -> Tensor:
    return x if branch is None else add_gated(x, *branch)


def _smaller(h: Tensor, weight: Tensor) -> bool:
    """Whether an image has fewer tokens than a row has weights, or is a condition, and no gradient
    is asked for. Not the batch decides: an image is drawn alike in any.
    """
    return not torch.is_grad_enabled() and (h.ndim == 2 or h.shape[1] < weight.shape[1])


def _sum(a: Tensor, b: Tensor | None) -> Tensor:
    return a if b is None else a + b
