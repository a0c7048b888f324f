"""The Diffusion Transformer (Peebles & Xie 2023, arXiv 2212.09748) with the released key names.

B images, C latent channels, H x W latent pixels, N = (H / patch) * (W / patch) tokens, D width.
Label dropout is drawn by the training loop, guidance by the sampler: neither lives here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

DIT_SIZES = {  # width, depth, heads (Table 1 of the DiT paper)
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}
PATCH_SIZES = (2, 4, 8)
NUM_FREQUENCIES = 256  # sines and cosines of the timestep together
MOST = {
    **{"image_size": 2**13, "image_width": 2**13, "patch_size": 2**8, "in_channels": 2**12},
    **{"width": 2**15, "depth": 2**10, "num_heads": 2**10},
}
MOST_POSITIONS = 2**26  # numbers in the table of positions, which is computed
MOST_WRITTEN_OUT = 64  # tokens: their scores are kept for the backward pass


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The shape of a DiT. `image_size` counts latent pixels (32 for 256-pixel images, 8x codec) of
    both sides, or from top to bottom where `image_width` is another number.

    `spacing` is the distance of neighbouring tokens, down and across, in the coordinates of the
    position table: 1 in the released weights. `frequency_shift` is the shift in the timestep
    frequencies: 0 in the released weights, 1 in diffusers' re-implementation.
    """

    image_size: int
    patch_size: int = 2
    in_channels: int = 4
    width: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    num_classes: int = 1000
    learn_sigma: bool = True
    frequency_shift: float = 0.0
    image_width: int | None = None
    spacing: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                expected = "at least 1" if value < 1 else f"at most {most:,}"
                raise ValueError(f"{name} is {value}; expected {expected}")
        if not 0 <= self.num_classes < 2**24:
            raise ValueError(f"num_classes is {self.num_classes}; expected 0 to {2**24 - 1:,}")
        if not 0 < self.mlp_ratio <= 64:
            raise ValueError(f"mlp_ratio is {self.mlp_ratio}; expected a number up to 64")
        if not abs(self.frequency_shift) < NUM_FREQUENCIES // 2:
            raise ValueError(f"frequency_shift is {self.frequency_shift}; expected 0 or 1")
        if not all(0 < one <= MOST["image_size"] for one in self.spacing):
            raise ValueError(f"spacing is {list(self.spacing)}; expected two numbers above 0")
        if any(side % self.patch_size for side in self.latent_size):
            height, width = self.latent_size
            size = height if width == height else f"{height} x {width}"
            raise ValueError(f"image_size {size} is not a multiple of patch_size {self.patch_size}")
        if self.width % 4 or self.width % self.num_heads:
            raise ValueError(
                f"width {self.width} must be a multiple of 4 and of num_heads {self.num_heads}"
            )
        if math.prod(self.grid) * self.width > MOST_POSITIONS:
            raise ValueError(f"image_size {self.image_size} is too large for width {self.width}")

    @property
    def out_channels(self) -> int:
        """Channels of the output: noise, and with learned variance as many again for it."""
        return self.in_channels * 2 if self.learn_sigma else self.in_channels

    @property
    def latent_size(self) -> tuple[int, int]:
        """Latent pixels from top to bottom and from left to right, as the shapes of tensors."""
        return self.image_size, self.image_size if self.image_width is None else self.image_width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        height, width = self.latent_size
        return height // self.patch_size, width // self.patch_size


def preset(name: str, *, image_size: int = 32, num_classes: int = 1000) -> DiTConfig:
    """The configuration of a member of the family, e.g. `DiT-XL/2`.

    Raises: ValueError if `name` is not DiT-{S,B,L,XL}/{2,4,8}.
    """
    size, _, patch = name.removeprefix("DiT-").partition("/")
    if not name.startswith("DiT-") or size not in DIT_SIZES or patch not in map(str, PATCH_SIZES):
        raise ValueError(f'unknown architecture "{name}"; choose DiT-{{S,B,L,XL}}/{{2,4,8}}')
    width, depth, num_heads = DIT_SIZES[size]
    return DiTConfig(
        image_size=image_size,
        patch_size=int(patch),
        width=width,
        depth=depth,
        num_heads=num_heads,
        num_classes=num_classes,
    )


def position_table(
    width: int, grid: tuple[int, int], spacing: tuple[float, float] = (1.0, 1.0)
) -> Float[Tensor, "1 N D"]:
    """Fixed sine-cosine positions of a grid of rows and columns, on the CPU; the first half of the
    channels is the column. Neighbours are `spacing` apart, down and across.
    """
    cpu = torch.device("cpu")
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device=cpu) / (width // 4))

    def line(count: int, distance: float) -> Tensor:
        """Sines and cosines along one side, (count, D / 2)."""
        places = torch.arange(count, dtype=torch.float64, device=cpu) * distance
        angles = torch.outer(places, omega)
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    down, across = map(line, grid, spacing)
    columns = across.repeat(len(down), 1)
    rows = down.repeat_interleave(len(across), dim=0)
    return torch.cat([columns, rows], dim=1)[None].float()


def modulate(
    x: Float[Tensor, "B N D"], shift: Float[Tensor, "B D"], scale: Float[Tensor, "B D"]
) -> Float[Tensor, "B N D"]:
    """x * (1 + scale) + shift, the same for all tokens of an image."""
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class PatchEmbedder(nn.Module):
    """Cut the latent into patches and project each to a token."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(
            config.in_channels, config.width, config.patch_size, stride=config.patch_size
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
        # (B, D, h, w) -> (B, N, D), in this order in memory too: what is added to it keeps it
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class TimestepEmbedder(nn.Module):
    """Sinusoidal timestep features through a two-layer network."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.frequency_shift = config.frequency_shift
        self.mlp = nn.Sequential(
            nn.Linear(NUM_FREQUENCIES, config.width),
            nn.SiLU(),
            nn.Linear(config.width, config.width),
        )

    def forward(
        self, t: Float[Tensor, "B"] | Int[Tensor, "B"], dtype: torch.dtype
    ) -> Float[Tensor, "B D"]:
        half = NUM_FREQUENCIES // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device)
        # In the order of the released code: float32 rounding of the exponent is felt at high t.
        frequencies = torch.exp(-math.log(10000.0) * exponent / (half - self.frequency_shift))
        angles = t[:, None].float() * frequencies[None]
        features = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(features.to(dtype))


class LabelEmbedder(nn.Module):
    """The label table; its last row is the null label of classifier-free guidance."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        # Zeros, not noise: random numbers on the meta device import torch's compiler, a second.
        rows = torch.zeros(config.num_classes + 1, config.width)
        self.embedding_table = nn.Embedding.from_pretrained(rows, freeze=False)

    def forward(self, y: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
        return self.embedding_table(y)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        heads = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # (B, N, 3, heads, D / heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of (B, heads, N, d), the softmax in float32.

    Written out for few tokens in reduced precision on a CPU, where the backward pass of PyTorch's
    fused kernel takes several times as long (bench/attention.py).
    """
    if q.device.type != "cpu" or q.dtype.itemsize > 2 or q.shape[2] > MOST_WRITTEN_OUT:
        return functional.scaled_dot_product_attention(q, k, v)
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    return scores.softmax(3, dtype=torch.float32).to(v.dtype) @ v


class FeedForward(nn.Module):
    """Two linears with a tanh-approximated GELU between."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = nn.GELU(approximate="tanh")
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.fc2(self.act(self.fc1(x)))


class Modulation(nn.Sequential):
    """From the condition to shifts, scales and gates: SiLU, then a linear."""

    def __init__(self, config: DiTConfig, num: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(config.width, num * config.width))

    @property
    def linear(self) -> nn.Linear:
        """What an activated condition goes through."""
        linear = self[1]
        assert isinstance(linear, nn.Linear)
        return linear


class Block(nn.Module):
    """A transformer block with adaLN-Zero: norms without affine, modulated and gated by c."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)
        self.mlp = FeedForward(config)
        self.adaLN_modulation = Modulation(config, 6)

    def forward(self, x: Float[Tensor, "B N D"], c: Float[Tensor, "B D"]) -> Float[Tensor, "B N D"]:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = torch.addcmul(x, gate1[:, None], self.attn(modulate(self.norm1(x), shift1, scale1)))
        return torch.addcmul(x, gate2[:, None], self.mlp(modulate(self.norm2(x), shift2, scale2)))


class FinalLayer(nn.Module):
    """The last modulated norm and the projection of each token to its patch."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(config.width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = Modulation(config, 2)

    def forward(self, x: Float[Tensor, "B N D"], c: Float[Tensor, "B D"]) -> Float[Tensor, "B N P"]:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """A class-conditional Diffusion Transformer predicting the noise and, as usual, its variance.

    `gradient_checkpointing` recomputes each block in the backward pass to save memory. `fast` is
    what computes the output while a delta acts without hooks (fast/acting.py).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.fast: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        self.x_embedder = PatchEmbedder(config)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = LabelEmbedder(config)
        table = position_table(config.width, config.grid, config.spacing)
        self.pos_embed = nn.Parameter(table.to(torch.empty(0).device), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        t: Float[Tensor, "B"] | Int[Tensor, "B"],
        y: Int[Tensor, "B"],
    ) -> Float[Tensor, "B C2 H W"]:
        """The predicted noise, followed by the variance channels v if the variance is learned.

        `t` counts steps of the original schedule; `y` holds labels, `config.num_classes` = null.
        """
        if self.fast is not None:
            return self.fast(x, t, y)
        c = self.t_embedder(t, x.dtype) + self.y_embedder(y)
        x = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, c, use_reentrant=False)
            else:
                x = block(x, c)
        return self.unpatchify(self.final_layer(x, c))

    def unpatchify(self, x: Float[Tensor, "B N P"]) -> Float[Tensor, "B C2 H W"]:
        """The image whose patches these are."""
        grid, patch = self.config.grid, self.config.patch_size
        x = x.unflatten(2, (patch, patch, -1)).unflatten(1, grid)  # (B, h, w, p, q, C)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator | None = None) -> None:
        """Start for training from scratch: Xavier linears, zero gates and a zero last layer."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.flatten(1), generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name in ("y_embedder.embedding_table", "t_embedder.mlp.0", "t_embedder.mlp.2"):
            nn.init.normal_(self.get_parameter(f"{name}.weight"), std=0.02, generator=generator)
        zeroed = [f"blocks.{index}.adaLN_modulation.1" for index in range(self.config.depth)]
        for name in (*zeroed, "final_layer.adaLN_modulation.1", "final_layer.linear"):
            nn.init.zeros_(self.get_parameter(f"{name}.weight"))
