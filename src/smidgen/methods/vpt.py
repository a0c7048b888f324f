"""Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119), equations 4 to 8: learned tokens before
those of the image, anew in each of some blocks (deep) or once for all of them (shallow).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smidgen.core.edits import Edit, Weight
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError
from smidgen.hosts.host import Block, Host
from smidgen.methods.configs import VPTConfig
from smidgen.methods.full import trained_copy
from smidgen.methods.method import Tunable, block_range

FIRST_BLOCKS = 5  # that get prompts in the DiffFit paper's Table 1 (as its count says)


def build(base: Tunable, config: VPTConfig, generator: torch.Generator) -> dict[str, Edit]:
    """The tokens and a copy of the final layer.

    Raises: SmidgenError if the base's blocks take no tokens.
    """
    host = base.host
    takers = [block for block in host.blocks if block.tokens is not None]
    if not takers:
        raise SmidgenError(f"vpt needs blocks that take tokens; a {host.family} base has none")
    prompts = _shallow(host, config) if config.depth == "shallow" else _deep(host, takers, config)
    for tokens in prompts.values():
        tokens.initialise(generator)
    return {**prompts, **(final_copy(base) if config.final_layer else {})}


def final_copy(base: Tunable) -> dict[str, Edit]:
    """A trained copy of all parameters of the final layer. Raises: as `trained_copy`."""
    name = base.host.final
    copies = {
        inner: trained_copy(base.denoiser, parameter, "vpt with final_layer")
        for inner, parameter in base.denoiser.get_submodule(name).named_parameters()
        if f"{name}.{inner}" not in base.host.fixed
    }
    return {f"{name}.copy": Weight(name, copies)}


def _deep(host: Host, takers: Sequence[Block], config: VPTConfig) -> dict[str, Tokens]:
    chosen = range(len(takers))
    if config.blocks == "auto":
        chosen = chosen[:FIRST_BLOCKS]
    elif config.blocks != "all":
        chosen = block_range(config.blocks, len(takers))
    blocks = [takers[number] for number in chosen]
    return {f"{block.module}.prompt": _tokens(host, [block], config.tokens) for block in blocks}


def _shallow(host: Host, config: VPTConfig) -> dict[str, Tokens]:
    """One set of tokens through all blocks, which must be one row of blocks of one width."""
    if any(block.tokens is None for block in host.blocks):
        raise SmidgenError(
            f"shallow tokens pass through all blocks, and those of a {host.family} base change the "
            "resolution or take none; use depth deep"
        )
    return {"prompt": _tokens(host, host.blocks, config.tokens)}


def _tokens(host: Host, blocks: Sequence[Block], num: int) -> Tokens:
    """Tokens that enter with the first and leave with the last of these blocks."""
    first, last = blocks[0].tokens, blocks[-1].tokens
    assert first is not None
    assert last is not None
    companions = dict.fromkeys(site for block in blocks for site in block.companions)
    return Tokens(first[0], last[1], num, host.sizes[first[0]], companions=tuple(companions))
