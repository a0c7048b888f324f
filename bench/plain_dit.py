"""The DiT written plainly, as its paper describes it, with DiffFit as DiffFit's paper does: what
bench/speed.py measures smidgen against. Nothing of smidgen is used here.

B images, N tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, gains: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.qkv_gain = nn.Parameter(torch.ones(3 * width)) if gains else None
        self.proj_gain = nn.Parameter(torch.ones(width)) if gains else None

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x)
        if self.qkv_gain is not None:
            qkv = qkv * self.qkv_gain
        q, k, v = qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v)
        x = self.proj(x.transpose(1, 2).reshape(batch, tokens, width))
        return x if self.proj_gain is None else x * self.proj_gain


class Block(nn.Module):
    """`gains` as DiffFit has them in the first half of the blocks."""

    def __init__(self, width: int, heads: int, affine: bool, gains: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=affine, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=affine, eps=1e-6)
        self.attn = Attention(width, heads, gains)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.attn_gain = nn.Parameter(torch.ones(width)) if gains else None
        self.mlp_gain = nn.Parameter(torch.ones(width)) if gains else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=1)
        a = self.attn(modulate(self.norm1(x), shift1, scale1))
        if self.attn_gain is not None:
            a = a * self.attn_gain
        x = x + gate1.unsqueeze(1) * a
        m = self.mlp(modulate(self.norm2(x), shift2, scale2))
        if self.mlp_gain is not None:
            m = m * self.mlp_gain
        return x + gate2.unsqueeze(1) * m


class PlainDiT(nn.Module):
    """Noise and variance (B, 8, S, S) for x (B, 4, S, S), steps t and classes y (B,)."""

    def __init__(
        self, size: int, width: int, depth: int, heads: int, classes: int, *, difffit: bool = False
    ) -> None:
        super().__init__()
        self.size = size
        self.embed = nn.Conv2d(4, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, (size // 2) ** 2, width) * 0.02, False)
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.table = nn.Embedding(classes + 1, width)
        half = (depth + 1) // 2
        self.blocks = nn.ModuleList(
            Block(width, heads, difffit, difffit and number < half) for number in range(depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=difffit, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.head = nn.Linear(width, 2 * 2 * 8)
        if difffit:
            vectors = [p for name, p in self.named_parameters() if p.ndim == 1]
            self.requires_grad_(False)
            for parameter in (*vectors, self.table.weight):
                parameter.requires_grad_(True)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(128, device=t.device) / 128)
        angles = t[:, None].float() * frequencies[None]
        c = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1).to(x.dtype)) + self.table(y)
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.modulation(c).chunk(2, dim=1)
        x = self.head(modulate(self.norm(x), shift, scale))
        side = self.size // 2
        x = x.reshape(len(x), side, side, 2, 2, 8)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(len(x), 8, self.size, self.size)
