"""DiffFit (Xie et al. 2023, arXiv 2304.06648): train biases, the label table, norm affines (created
where a norm has none) and scale vectors (gamma) in some blocks; section 3.2, Tables 1 and 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from smidgen.core.edits import Edit, Scale, Shift
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from smidgen.hosts.host import Host
from smidgen.methods.bitfit import bias_shifts
from smidgen.methods.configs import DIFFFIT_BLOCKS, DiffFitConfig
from smidgen.methods.method import Tunable, block_range

BLOCK_TAPS = {  # gamma location -> taps that it multiplies in each chosen block, where they exist
    "qkv": ("attn.qkv.out", "attn.q.out", "attn.k.out", "attn.v.out"),
    "proj": ("attn.proj.out",),
    "block": ("attn.out", "cross.out", "ff.out", "conv2.out"),
}
SINGLE_TAPS = {"block": ("proj.out",)}  # one stream: the projection ends attention and feed-forward
MODEL_TAPS = {"patch": "patch.out", "time": "time.out", "final": "final.out"}

FINAL_SETTING = ("block", "qkv", "proj", "final")  # Table 4c, row 8
SUB_LAYERS = ("block",)


def build(base: Tunable, config: DiffFitConfig, generator: torch.Generator) -> dict[str, Edit]:
    """The edits of `config`. Where they share a site, a norm's weight comes before the bias, and
    the bias before the gamma.

    Raises: SmidgenError if the base lacks a location that `config` names.
    """
    host = base.host
    weights = norm_weights(host) if config.layer_norm else {}
    biases = bias_shifts(host) if config.biases else {}
    affines = created_affines(host) if config.layer_norm else {}
    return {**weights, **biases, **affines, **gammas(host, config)}


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


def gammas(host: Host, config: DiffFitConfig) -> dict[str, Edit]:
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


def _in_blocks(host: Host, locations: Sequence[str], config: DiffFitConfig) -> list[Site]:
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
    if blocks in DIFFFIT_BLOCKS:
        return range(depth)
    return block_range(blocks, depth)
