"""DiffFit (Xie et al. 2023, arXiv 2304.06648): train biases, the label table, norm affines (created
where a norm has none) and scale vectors (gamma) in some blocks; section 3.2, Tables 1 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Scale, Shift
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError, UsageError
from smidgen.hosts.host import Host
from smidgen.methods.bitfit import bias_shifts
from smidgen.methods.label_table import label_edits
from smidgen.methods.method import (
    Tunable,
    assemble,
    block_range,
    range_ends,
    refuse_where_impossible,
)

Gamma = Literal["block", "qkv", "proj", "final", "patch", "time", "auto"]

BLOCK_TAPS = {  # gamma location -> taps that it multiplies in each chosen block, where they exist
    "qkv": ("attn.qkv.out", "attn.q.out", "attn.k.out", "attn.v.out"),
    "proj": ("attn.proj.out",),
    "block": ("attn.out", "cross.out", "ff.out", "conv2.out"),
}
SINGLE_TAPS = {"block": ("proj.out",)}  # one stream: the projection ends attention and feed-forward
MODEL_TAPS = {"patch": "patch.out", "time": "time.out", "final": "final.out"}

FINAL_SETTING = ("block", "qkv", "proj", "final")  # Table 4c, row 8
SUB_LAYERS = ("block",)
WORDS = ("auto", "half", "all")


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's final setting (Table 4c, row 8) by default.

    `gammas`: where scale vectors multiply; "auto": block, qkv, proj and final on a transformer, on
    any other network block alone (the outputs of attention, feed-forward and residual branches).
    `blocks`: the blocks that get "block", "qkv" and "proj": "half" (the first half, 1-14 of 28),
    "all", a range such as "15-28" or "28-15" (from 1, both ends included), or "auto": half of a
    transformer, all of any other network. `biases` and `layer_norm` (the affines of all norms)
    always cover the whole network.
    """

    gammas: tuple[Gamma, ...] = ("auto",)
    blocks: str = "auto"
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
        if "auto" in self.gammas and len(self.gammas) > 1:
            others = ", ".join(name for name in self.gammas if name != "auto")
            raise UsageError(f'gammas "auto" stands alone, not with {others}')
        if self.blocks not in WORDS:
            range_ends(self.blocks, *WORDS)


def build(
    base: Tunable, config: Config, classes: Sequence[str], generator: torch.Generator
) -> Delta:
    """The edits of `config`. Where they share a site, a norm's weight comes before the bias, and
    the bias before the gamma.

    Raises: SmidgenError if the base lacks a location that `config` names.
    """
    host = base.host
    refuse_where_impossible(host, "difffit")
    weights = norm_weights(host) if config.layer_norm else {}
    biases = bias_shifts(host) if config.biases else {}
    table = label_edits(base, classes, generator)
    affines = created_affines(host) if config.layer_norm else {}
    scales = gammas(host, config)
    return assemble(base, "difffit", config, classes, weights, biases, table, affines, scales)


def norm_weights(host: Host) -> dict[str, Edit]:
    """A gain for every norm that has a weight. Before the shift of its bias b, so that the norm
    returns z * (w * gain) + b * gain + offset: any bias, and any weight where w is not 0.
    """
    return {f"{site.module}.weight": Scale(site, host.sizes[site]) for site in host.norms}


def created_affines(host: Host) -> dict[str, Edit]:
    """Created weight and bias of the norms without affine: y * weight + bias before modulation."""
    edits: dict[str, Edit] = {}
    for site in host.bare_norms:
        edits[f"{site.module}.weight"] = Scale(site, host.sizes[site])
        edits[f"{site.module}.bias"] = Shift(site, host.sizes[site])
    return edits


def gammas(host: Host, config: Config) -> dict[str, Edit]:
    """The scale vectors, in the order in which the network reaches them."""
    chosen = config.gammas
    if "auto" in chosen:
        wanted = FINAL_SETTING if host.half else SUB_LAYERS
        chosen = tuple(name for name in wanted if MODEL_TAPS.get(name, "") in ("", *host.taps))
    in_model = {name: host.tap(tap) for name, tap in MODEL_TAPS.items() if name in chosen}
    sites = [in_model[name] for name in ("patch", "time") if name in in_model]
    sites += _in_blocks(host, [name for name in BLOCK_TAPS if name in chosen], config)
    sites += [in_model[name] for name in ("final",) if name in in_model]
    return {f"{site.module}.gamma": Scale(site, host.sizes[site]) for site in dict.fromkeys(sites)}


def _in_blocks(host: Host, locations: Sequence[str], config: Config) -> list[Site]:
    """The sites of `locations` in the chosen blocks; each must exist in some block of the base."""
    for location in locations:
        if "auto" not in config.gammas and not any(
            list(_sites(host, block, location)) for block in range(len(host.blocks))
        ):
            raise SmidgenError(
                f'gamma "{location}" has no place in a {host.family} base, whose blocks have no '
                f"{', '.join(BLOCK_TAPS[location])}; leave it out"
            )
    return [
        site
        for block in chosen_blocks(config.blocks, len(host.blocks), half=host.half)
        for location in locations
        for site in _sites(host, block, location)
    ]


def _sites(host: Host, block: int, location: str) -> Iterator[Site]:
    taps = host.blocks[block].taps
    single = host.blocks[block].kind == "single" and location in SINGLE_TAPS
    names = SINGLE_TAPS[location] if single else BLOCK_TAPS[location]
    return (taps[name] for name in names if name in taps)


def chosen_blocks(blocks: str, depth: int, *, half: bool = True) -> range:
    """The blocks, counted from 0, that "half" (rounded up), "all", "auto" ("half" if `half`, else
    "all") or "A-B" mean at this depth.

    Raises: UsageError if the range is malformed or does not fit the depth.
    """
    if blocks == "half" or (blocks == "auto" and half):
        return range((depth + 1) // 2)
    if blocks in WORDS:
        return range(depth)
    return block_range(blocks, depth)
