"""DiffFit (Xie et al. 2023, arXiv 2304.06648): train biases, the label table, created LayerNorm
affines and scale vectors (gamma) in some blocks; section 3.2, Table 1 and Table 4 of the paper.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Scale, Shift
from smidgen.errors import UsageError
from smidgen.hosts.host import Host
from smidgen.methods.bitfit import bias_shifts
from smidgen.methods.label_table import label_table
from smidgen.methods.method import Tunable, assemble

Gamma = Literal["block", "qkv", "proj", "final", "patch", "time"]

BLOCK_TAPS = {  # gamma location -> taps that it multiplies in each chosen block
    "qkv": ("attn.qkv.out",),
    "proj": ("attn.proj.out",),
    "block": ("attn.out", "ff.out"),
}
MODEL_TAPS = {"patch": "patch.out", "time": "time.out", "final": "final.out"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's final setting (Table 4c, row 8) by default.

    `gammas`: where scale vectors multiply. `blocks`: the blocks that get "block", "qkv" and "proj":
    "half" (the first half, 1-14 of 28), "all", or a range such as "15-28" (from 1, both ends
    included). `biases` and `layer_norm` always cover all blocks.
    """

    gammas: tuple[Gamma, ...] = ("block", "qkv", "proj", "final")
    blocks: str = "half"
    biases: bool = True
    layer_norm: bool = True

    def __post_init__(self) -> None:
        unknown = [name for name in self.gammas if name not in get_args(Gamma)]
        if unknown:
            raise UsageError(
                f'unknown gamma "{unknown[0]}"; choose from: {", ".join(get_args(Gamma))}'
            )
        if len(set(self.gammas)) < len(self.gammas):
            raise UsageError(f"gammas names a location twice: {', '.join(self.gammas)}")
        _block_bounds(self.blocks)


def build(
    base: Tunable, config: Config, classes: Sequence[str], generator: torch.Generator
) -> Delta:
    """The edits of `config`. Where they share a site, the bias comes before the gamma."""
    host = base.host
    biases = bias_shifts(host) if config.biases else {}
    table = {"label_table": label_table(base, classes, generator)}
    affines = layer_norm_affines(host) if config.layer_norm else {}
    scales = gammas(host, config)
    return assemble(base, "difffit", config, classes, biases, table, affines, scales)


def layer_norm_affines(host: Host) -> dict[str, Edit]:
    """Created weight and bias of the norms without affine: y * weight + bias before modulation."""
    edits: dict[str, Edit] = {}
    sites = [host.block_tap(b, f"norm{n}.out") for b in range(len(host.blocks)) for n in (1, 2)]
    for site in (*sites, host.tap("norm.out")):
        edits[f"{site.module}.weight"] = Scale(site, host.sizes[site])
        edits[f"{site.module}.bias"] = Shift(site, host.sizes[site])
    return edits


def gammas(host: Host, config: Config) -> dict[str, Edit]:
    """The scale vectors, in the order in which the network reaches them."""
    in_model = {name: host.tap(tap) for name, tap in MODEL_TAPS.items() if name in config.gammas}
    sites = [in_model[name] for name in ("patch", "time") if name in in_model]
    for block in chosen_blocks(config.blocks, len(host.blocks)):
        for location, taps in BLOCK_TAPS.items():
            if location in config.gammas:
                sites += [host.block_tap(block, tap) for tap in taps]
    sites += [in_model[name] for name in ("final",) if name in in_model]
    return {f"{site.module}.gamma": Scale(site, host.sizes[site]) for site in sites}


def chosen_blocks(blocks: str, depth: int) -> range:
    """The blocks, counted from 0, that "half" (rounded up), "all" or "A-B" mean at this depth.

    Raises: UsageError if the range is malformed, backwards or does not fit the depth.
    """
    if blocks == "half":
        return range((depth + 1) // 2)
    first, last = _block_bounds(blocks) or (1, depth)
    if last > depth:
        raise UsageError(f'blocks "{blocks}" do not fit: the base has blocks 1-{depth}')
    return range(first - 1, last)


def _block_bounds(blocks: str) -> tuple[int, int] | None:
    """First and last block of an explicit range, None for "half" and "all"."""
    if blocks in ("half", "all"):
        return None
    match = re.fullmatch(r"([0-9]+)-([0-9]+)", blocks)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f'blocks is "{blocks}"; expected "half", "all" or a range such as "1-14"')
    return int(match[1]), int(match[2])
