"""The pieces of a frozen block that autograd takes apart badly, each with its own backward pass.

B images, N tokens, D width. Autograd keeps what it cannot know to be of no use: the outputs of each
addition to the residual stream, of each norm and of each product that is modulated. These keep
what their derivatives need: the normalised stream, and the branch that was added to it where its
gate is trained. Sums over the tokens of an image, the derivatives of vectors that act on all tokens
alike, are made on the way.

With the residual x, a branch p that is added to it through a gate g (B, D), and a modulation m, s
(B, D), which holds 1 + scale and shift:

    x' = x + g p        z = (x' - mean) / std        h = m z + s

A gradient (dx', dh) gives, sums over the tokens of each image,

    ds = sum dh         dm = sum dh z
    dx = dx' + (m dh - mean(m dh) - z mean(m dh z)) / std
    dp = g dx           dg = sum p dx

and the bias b of the product that made p gets sum_B g sum_N dx, without another pass over dp.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from smidgen.fast.eight_bit import Columns, EightBit, product

Tokens = Float[Tensor, "B N D"]
PerImage = Float[Tensor, "B D"]

ROWS = 2**16  # numbers of one image from which PyTorch's own norm of it is faster than the pieces


def norm_modulate(x: Tokens, m: PerImage, s: PerImage, eps: float) -> Tokens:
    """m * norm(x) + s."""
    return _NormModulate.apply(x, m, s, eps)[0]


def add_norm_modulate(
    x: Tokens,
    p: Tokens,
    gate: PerImage,
    bias: Float[Tensor, " D"] | None,
    m: PerImage,
    s: PerImage,
    eps: float,
) -> tuple[Tokens, Tokens]:
    """(x + gate * p, the norm of that modulated). `bias` is what the product p holds already: it
    changes nothing here and receives its gradient.
    """
    return _AddNormModulate.apply(x, p, gate, bias, m, s, eps)


def add_gated(x: Tokens, p: Tokens, gate: PerImage, bias: Float[Tensor, " D"] | None) -> Tokens:
    """x + gate * p; `bias` as in `add_norm_modulate`."""
    return _AddGated.apply(x, p, gate, bias)


def frozen_linear(
    h: Float[Tensor, "B N D"],
    weight: Float[Tensor, "E D"],
    gain: Float[Tensor, " E"] | None,
    bias: Float[Tensor, " E"] | None,
    eight_bit: EightBit | None = None,
) -> Float[Tensor, "B N E"]:
    """gain * (weight h) + bias of a frozen weight, as one product, in 8 bit where there is such a
    form of the weight.

    Left to autograd, gain * weight would be given a gradient as large as the weight's, which is the
    most expensive product of full fine-tuning. With y the output, that of the gain is
    sum dy (y - bias) / gain, from what attention keeps anyway; no gain may be near 0 then
    (`plan.foldable`).
    """
    forms = (None, None) if eight_bit is None else eight_bit
    columns = [part for form in forms for part in form or (None, None)]
    return _FrozenLinear.apply(h, weight, gain, bias, *columns)


class _NormModulate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, m: Tensor, s: Tensor, eps: float) -> tuple[Tensor]:
        h, kept = _normed(x, m, s, eps)
        ctx.save_for_backward(m, s, *kept)
        return (h,)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        m, s, *kept = ctx.saved_tensors
        trained = any(ctx.needs_input_grad[1:3])
        return *_normed_backward(dh, m, s, kept, None, trained), None


class _AddNormModulate(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        p: Tensor,
        gate: Tensor,
        bias: Tensor | None,
        m: Tensor,
        s: Tensor,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        x = torch.addcmul(x, gate[:, None], p)
        h, kept = _normed(x, m, s, eps)
        ctx.save_for_backward(*_of_branch(ctx, p, gate), m, s, *kept)
        return x, h

    @staticmethod
    def backward(ctx: Any, dx: Tensor, dh: Tensor) -> tuple[Tensor | None, ...]:
        p, gate, m, s, *kept = ctx.saved_tensors
        trained = any(ctx.needs_input_grad[4:6])
        dx, dm, ds = _normed_backward(dh, m, s, kept, dx, trained)
        return dx, *_branch_backward(ctx, dx, p, gate), dm, ds, None


class _AddGated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, gate: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(*_of_branch(ctx, p, gate))
        return torch.addcmul(x, gate[:, None], p)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        p, gate = ctx.saved_tensors
        return dx, *_branch_backward(ctx, dx, p, gate)


class _FrozenLinear(Function):
    """The last four are numbers and scales of the weight in 8 bit, for the way back and forth."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        gain: Tensor | None,
        bias: Tensor | None,
        back_numbers: Tensor | None,
        back_scales: Tensor | None,
        numbers: Tensor | None,
        scales: Tensor | None,
    ) -> Tensor:
        if numbers is None or scales is None:
            weight_of_all = weight if gain is None else weight * gain[:, None]
            y = functional.linear(h, weight_of_all, bias)
        else:
            own = scales if gain is None else scales * gain
            y = product(h, Columns(numbers, own)).to(_computed_in(h))
            y = y if bias is None else y.add_(bias)
        kept = None if gain is None else y
        ctx.save_for_backward(weight, gain, bias, back_numbers, back_scales, kept)
        ctx.dtype = h.dtype
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, gain, bias, back_numbers, back_scales, y = ctx.saved_tensors
        axes = tuple(range(dy.ndim - 1))
        dh = dgain = dbias = None
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            dbias = dy.sum(axes, dtype=bias.dtype)
        if y is not None:
            dgain = ((dy * y).sum(axes, dtype=bias.dtype) - bias * dbias) / gain
        if ctx.needs_input_grad[0] and back_numbers is not None:
            dy = dy if gain is None else dy * gain
            dh = product(dy, Columns(back_numbers, back_scales)).to(ctx.dtype)
        elif ctx.needs_input_grad[0]:
            own = weight if gain is None else weight * gain[:, None]
            dh = (dy @ own.to(dy.dtype)).to(ctx.dtype)
        return dh, None, dgain, dbias, None, None, None, None


def _computed_in(h: Tensor) -> torch.dtype:
    """In what a product gives its output."""
    kind = h.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else h.dtype


def _of_branch(ctx: Any, p: Tensor, gate: Tensor) -> tuple[Tensor | None, Tensor]:
    """What is kept of the branch, inputs 1 and 2: itself only if its gate gets a gradient."""
    ctx.dtype = p.dtype
    return p if ctx.needs_input_grad[2] else None, gate


def _branch_backward(
    ctx: Any, dx: Tensor, p: Tensor | None, gate: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of p, gate and bias, inputs 1 to 3."""
    dp = dx * gate[:, None]
    dgate = None if p is None else (dx * p).sum(1).to(gate.dtype)
    dbias = (gate * dx.sum(1)).sum(0).to(gate.dtype) if ctx.needs_input_grad[3] else None
    return dp.to(ctx.dtype), dgate, dbias


def _by_image(x: Tensor) -> bool:
    """Whether PyTorch's norm with a weight is called for one image after the other: it does in one
    pass what takes several, but a call costs as much as a few thousand numbers.
    """
    return x.device.type == "cpu" and x[0].numel() >= ROWS and not torch.compiler.is_compiling()


def _normed(x: Tensor, m: Tensor, s: Tensor, eps: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """m * norm(x) + s, and what its derivative needs besides m and s."""
    width = x.shape[-1:]
    if _by_image(x):
        m, s, h = m.to(x.dtype), s.to(x.dtype), torch.empty_like(x)
        mean, inverse = x.new_empty((2, *x.shape[:2], 1))
        for i in range(len(x)):
            out = {"out0": h[i], "out1": mean[i], "out2": inverse[i]}
            torch.ops.aten.native_layer_norm.out(x[i], width, m[i], s[i], eps, **out)
        return h, (x, mean, inverse)
    z, _, inverse = torch.native_layer_norm(x, width, None, None, eps)
    return torch.addcmul(s[:, None], z, m[:, None]), (z, inverse)


def _normed_backward(
    dh: Tensor, m: Tensor, s: Tensor, kept: list[Tensor], dx: Tensor | None, trained: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, `dx` being what it has already, and of m and s if these are `trained`."""
    width = dh.shape[-1:]
    if len(kept) == 3:
        x, mean, inverse = kept
        weight, shift, own = m.to(x.dtype), s.to(x.dtype), torch.empty_like(x)
        dm, ds = torch.empty_like(weight), torch.empty_like(shift)
        for i in range(len(x)):
            given = (dh[i], x[i], width, mean[i], inverse[i], weight[i], shift[i])
            out = {"out0": own[i], "out1": dm[i], "out2": ds[i]}
            wanted = [True, trained, trained]
            torch.ops.aten.native_layer_norm_backward.out(*given, wanted, **out)
        own = own if dx is None else own.add_(dx)
        return (own, dm.to(m.dtype), ds.to(s.dtype)) if trained else (own, None, None)
    z, inverse = kept
    ds, dm = (dh.sum(1), (dh * z).sum(1)) if trained else (None, None)
    zeros, ones = torch.zeros_like(inverse), torch.ones_like(inverse)
    own = torch.ops.aten.native_layer_norm_backward(
        dh * m[:, None], z, width, zeros, ones, None, None, [True, False, False]
    )[0]
    own = own * inverse if dx is None else torch.addcmul(dx, own, inverse)
    return own, dm, ds
