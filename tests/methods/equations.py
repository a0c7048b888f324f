"""The Diffusion Transformer written out from its paper, with every place of a method in the open.

w are the base's tensors by name; B images, N tokens, D the width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.tiny.deltas import trained_tensors

HEADS, PATCH = 2, 2  # of the tiny DiT


def unchanged(block: int, read: Tensor, output: Tensor) -> Tensor:
    """A method that leaves a sub-layer alone."""
    return output


def same(block: int, h: Tensor) -> Tensor:
    """A method that leaves a block's input or output alone."""
    return h


def dit(
    w: Mapping[str, Tensor],
    rows: Tensor,
    x: Tensor,
    t: Tensor,
    y: Tensor,
    *,
    depth: int = 2,
    qkv: Callable[[int, Tensor, Tensor], Tensor] = unchanged,
    attention: Callable[[int, Tensor, Tensor], Tensor] = unchanged,
    feed_forward: Callable[[int, Tensor, Tensor], Tensor] = unchanged,
    enter: Callable[[int, Tensor], Tensor] = same,
    leave: Callable[[int, Tensor], Tensor] = same,
    before_feed_forward: Callable[[int, Tensor], Tensor] = same,
) -> Tensor:
    """A DiT whose label table is `rows`. The functions see what a sub-layer read and returned, or
    the residual stream at the begin, the middle and the end of each block.
    """

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ w[f"{name}.weight"].flatten(1).T + w[f"{name}.bias"]

    batch, _, size, _ = x.shape
    grid = size // PATCH
    h = x.reshape(batch, -1, grid, PATCH, grid, PATCH).permute(0, 2, 4, 1, 3, 5)
    h = linear("x_embedder.proj", h.reshape(batch, grid * grid, -1)) + w["pos_embed"]
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)[None]
    features = torch.cat([angles.cos(), angles.sin()], -1).double()
    c = linear("t_embedder.mlp.2", silu(linear("t_embedder.mlp.0", features))) + rows[y]
    c = silu(c)
    for n in range(depth):
        block = f"blocks.{n}"
        modulation = linear(f"{block}.adaLN_modulation.1", c)[:, None].chunk(6, -1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        h = enter(n, h)
        a = normalised(h) * (1 + scale1) + shift1
        parts = qkv(n, a, linear(f"{block}.attn.qkv", a)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        h = h + gate1 * attention(n, a, linear(f"{block}.attn.proj", mixed))
        h = before_feed_forward(n, h)
        f = normalised(h) * (1 + scale2) + shift2
        output = linear(f"{block}.mlp.fc2", gelu(linear(f"{block}.mlp.fc1", f)))
        h = leave(n, h + gate2 * feed_forward(n, f, output))
    shift, scale = linear("final_layer.adaLN_modulation.1", c)[:, None].chunk(2, -1)
    h = linear("final_layer.linear", normalised(h) * (1 + scale) + shift)
    h = h.reshape(batch, grid, grid, PATCH, PATCH, -1).permute(0, 5, 1, 3, 2, 4)
    return h.reshape(batch, -1, size, size)


def normalised(h: Tensor) -> Tensor:
    """Zero mean and unit variance over the channels."""
    h = h - h.mean(-1, keepdim=True)
    return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def silu(h: Tensor) -> Tensor:
    return h / (1 + (-h).exp())


def gelu(h: Tensor) -> Tensor:
    return h * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))


def assert_same_output_and_gradients(
    delta: torch.nn.Module, output: Tensor, expected: Tensor, *, tolerance: float = 1e-6
) -> None:
    """Both, for a random weighting of the outputs; `tolerance` is relative to the largest entry."""
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=tolerance)
    tensors = trained_tensors(delta)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(5)).to(output)
    ours = torch.autograd.grad((output * direction).sum(), list(tensors.values()))
    theirs = torch.autograd.grad((expected * direction).sum(), list(tensors.values()))
    for name, one, other in zip(tensors, ours, theirs, strict=True):
        assert other.abs().max() > 0, name
        atol = 10 * tolerance * other.abs().max().item()
        torch.testing.assert_close(one, other, atol=atol, rtol=10 * tolerance, msg=name)
