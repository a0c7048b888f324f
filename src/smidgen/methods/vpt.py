"""Visual prompt tuning (Jia et al. 2022, arXiv 2203.12119), equations 4 to 8: learned tokens before
those of the image, anew in each of some blocks (deep) or once for all of them (shallow).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Weight
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError, UsageError
from smidgen.hosts.host import Block, Host
from smidgen.methods.bypass import building
from smidgen.methods.label_table import label_edits
from smidgen.methods.method import (
    Tunable,
    assemble,
    block_range,
    check_size,
    range_ends,
    refuse_where_impossible,
)

FIRST_BLOCKS = 5  # that get prompts in the DiffFit paper's Table 1 (as its count says)
WORDS = ("auto", "all")

Depth = Literal["deep", "shallow"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's VPT-Deep by default: one token in each of blocks 1-5 and the final layer.

    `depth`: deep, new tokens in each block of `blocks`, dropped behind it; shallow, the same ones
    from before the first block to behind the last. `tokens`: how many at a time. `blocks`: "auto"
    (1-5, or all where there are fewer), "all", or a range such as "1-5" (from 1, both ends
    included) of the blocks that can take tokens. `final_layer`: whether that is trained as well.
    """

    depth: Depth = "deep"
    tokens: int = 1
    blocks: str = "auto"
    final_layer: bool = True

    def __post_init__(self) -> None:
        if self.depth not in get_args(Depth):
            raise UsageError(f'depth is "{self.depth}"; choose from: {", ".join(get_args(Depth))}')
        check_size("tokens", self.tokens)
        if self.blocks not in WORDS:
            range_ends(self.blocks, *WORDS)
        if self.depth == "shallow" and self.blocks != "auto":
            raise UsageError(
                f'blocks is "{self.blocks}", but shallow tokens pass through all blocks'
            )


def build(
    base: Tunable, config: Config, classes: Sequence[str], generator: torch.Generator
) -> Delta:
    """The tokens, a copy of the final layer, and the label table if there is one.

    Raises: SmidgenError if the base's blocks take no tokens.
    """
    host = base.host
    refuse_where_impossible(host, "vpt")
    takers = [block for block in host.blocks if block.tokens is not None]
    if not takers:
        raise SmidgenError(f"vpt needs blocks that take tokens; a {host.family} base has none")
    with building(base):
        prompts = (
            _shallow(host, config) if config.depth == "shallow" else _deep(host, takers, config)
        )
    for tokens in prompts.values():
        tokens.initialise(generator)
    final = final_copy(base) if config.final_layer else {}
    table = label_edits(base, classes, generator)
    return assemble(base, "vpt", config, classes, table, prompts, final)


def final_copy(base: Tunable) -> dict[str, Edit]:
    """A trained copy of all parameters of the final layer."""
    name = base.host.final
    copies = {
        inner: parameter.detach().clone()
        for inner, parameter in base.denoiser.get_submodule(name).named_parameters()
        if f"{name}.{inner}" not in base.host.fixed
    }
    return {f"{name}.copy": Weight(name, copies)}


def _deep(host: Host, takers: Sequence[Block], config: Config) -> dict[str, Tokens]:
    chosen = range(len(takers))
    if config.blocks == "auto":
        chosen = chosen[:FIRST_BLOCKS]
    elif config.blocks != "all":
        chosen = block_range(config.blocks, len(takers))
    blocks = [takers[number] for number in chosen]
    return {f"{block.module}.prompt": _tokens(host, [block], config.tokens) for block in blocks}


def _shallow(host: Host, config: Config) -> dict[str, Tokens]:
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
