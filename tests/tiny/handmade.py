"""A small hand-made network with everything that makes sites hard, and deltas of it.

Arguments by position and by keyword, tuples of outputs, a convolution's channels at axis 1, a norm
whose affine comes from another linear, checkpointing. Every tensor is random.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Scale, Shift, Table, Weight
from smidgen.core.fold import IntoLinear, IntoModulation, IntoTable, Target
from smidgen.core.sites import Site
from tests.tiny.deltas import provenance

WIDTH, NUM_OLD_ROWS, NUM_ROWS = 8, 5, 9


class Mixer(nn.Module):
    """Two linears; the output of the module is that of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, 12)
        self.proj = nn.Linear(12, WIDTH)

    def forward(self, h: Tensor, *, flavour: Tensor | None = None) -> Tensor:
        return self.proj(torch.tanh(self.inner(h)))


class Block(nn.Module):
    """Returns a pair, the stream second; the first is None in the last block."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)
        self.mixer = Mixer()

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor]:
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        h = self.mixer(h=self.norm(x) * (1 + scale) + shift)
        return (None if self.last else h), x + h


class Network(nn.Module):
    """(B, 3, 4, 4) images and (B,) labels -> (B, 16, 3)."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(NUM_OLD_ROWS, WIDTH)
        self.stem = nn.Conv2d(3, WIDTH, 1)
        self.blocks = nn.ModuleList([Block(last=False), Block(last=True)])
        self.head = nn.Linear(WIDTH, 3)
        self.checkpointing = False
        self.skip_first_mixer = False
        randomise(self, seed)
        self.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        c = self.table(y)
        h = self.stem(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
        for block in self.blocks:
            if self.checkpointing:
                _, h = checkpoint(block, h, c, use_reentrant=False)
            elif self.skip_first_mixer and not block.last:
                continue
            else:
                _, h = block(x=h, c=c)
        return self.head(h)


TARGETS: dict[Site, Target] = {
    Site("table"): IntoTable("table.weight"),
    Site("stem", axis=1): IntoLinear("stem.weight", "stem.bias"),
    Site("head"): IntoLinear("head.weight", "head.bias"),
}
for block in ("blocks.0", "blocks.1"):
    linears = ("mixer.inner", "mixer.proj", "modulation")
    TARGETS |= {
        Site(f"{block}.{name}"): IntoLinear(f"{block}.{name}.weight", f"{block}.{name}.bias")
        for name in linears
    }
    TARGETS[Site(f"{block}.mixer")] = TARGETS[Site(f"{block}.mixer.proj")]
    modulation = TARGETS[Site(f"{block}.modulation")]
    TARGETS[Site(f"{block}.norm")] = IntoModulation(
        modulation.weight, modulation.bias, shift=(0, WIDTH), scale=(WIDTH, 2 * WIDTH)
    )


def foldable_edits(network: Network) -> dict[str, Edit]:
    """All kinds of edits, several at one site and some listed against the order of the network."""
    return {
        "label_table": Table(
            Site("table", "in"), Site("table"), NUM_OLD_ROWS, torch.ones(NUM_ROWS, WIDTH)
        ),
        "table.gamma": Scale(Site("table"), WIDTH),
        "stem.gamma": Scale(Site("stem", axis=1), WIDTH),
        "stem.bias": Shift(Site("stem", axis=1), WIDTH),
        "blocks.0.mixer.gamma": Scale(Site("blocks.0.mixer"), WIDTH),
        "blocks.0.mixer.proj.bias": Shift(Site("blocks.0.mixer.proj"), WIDTH),
        "blocks.0.mixer.proj.gamma": Scale(Site("blocks.0.mixer.proj"), WIDTH),
        "blocks.0.norm.weight": Scale(Site("blocks.0.norm"), WIDTH),
        "blocks.0.norm.bias": Shift(Site("blocks.0.norm"), WIDTH),
        "blocks.0.modulation.bias": Shift(Site("blocks.0.modulation"), 2 * WIDTH),
        "blocks.1.norm.bias": Shift(Site("blocks.1.norm"), WIDTH),
        "blocks.1.norm.weight": Scale(Site("blocks.1.norm"), WIDTH),
        "head.gamma": Scale(Site("head"), 3),
        "head.copy": Weight("head", dict(network.head.named_parameters())),
    }


def edits(network: Network) -> dict[str, Edit]:
    """The same, with sites that do not fold: an input, part of a tuple."""
    return foldable_edits(network) | {
        "blocks.0.c": Scale(Site("blocks.0", "in", argument="c"), WIDTH),
        "blocks.1.stream": Shift(Site("blocks.1", index=1), WIDTH),
    }


def delta_of(network: Network, seed: int = 1) -> Delta:
    """A delta of `edits` with random values."""
    delta = Delta(edits(network), provenance())
    return randomise(delta, seed)


def randomise(module, seed: int):
    """`module` itself, with parameters that are neither small nor alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 + 0.5 * torch.randn(parameter.shape, generator=generator))
    return module


def inputs(batch: int = 6) -> tuple[Tensor, Tensor]:
    """Images, and labels of the new table."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, 4, 4, generator=generator), torch.arange(batch) + NUM_ROWS - batch


def by_hand(network: Network, delta: Delta, x: Tensor, y: Tensor) -> Tensor:
    """What `network` computes with `delta` of `edits` attached, written out."""
    d = dict(delta.named_parameters())
    c = d["label_table.rows"][y] * d["table.gamma.gain"]
    h = network.stem(x).flatten(2).transpose(1, 2) * d["stem.gamma.gain"] + d["stem.bias.offset"]

    first, second = network.blocks
    modulation = first.modulation(c * d["blocks.0.c.gain"]) + d["blocks.0.modulation.bias.offset"]
    shift, scale = modulation[:, None].chunk(2, dim=-1)
    z = first.norm(h) * d["blocks.0.norm.weight.gain"] + d["blocks.0.norm.bias.offset"]
    z = first.mixer.proj(torch.tanh(first.mixer.inner(z * (1 + scale) + shift)))
    z = (z + d["blocks.0.mixer.proj.bias.offset"]) * d["blocks.0.mixer.proj.gamma.gain"]
    h = h + z * d["blocks.0.mixer.gamma.gain"]

    shift, scale = second.modulation(c)[:, None].chunk(2, dim=-1)
    z = (second.norm(h) + d["blocks.1.norm.bias.offset"]) * d["blocks.1.norm.weight.gain"]
    h = h + second.mixer(z * (1 + scale) + shift) + d["blocks.1.stream.offset"]
    return (h @ d["head.copy.weight"].T + d["head.copy.bias"]) * d["head.gamma.gain"]
