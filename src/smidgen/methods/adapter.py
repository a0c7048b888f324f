"""Adapters at any position of a block: Xiang et al. 2023, "A Closer Look at Parameter-Efficient
Tuning in Diffusion Models" (arXiv 2303.18181), sections 3.1 to 3.3.

What is read at the input position goes through a bottleneck and is added, times a scale, at the
output position. Which sites a position is in a block is the host's knowledge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NoReturn

import torch

from smidgen.core.bypass import Bottleneck, Bypass, ConvBottleneck, Linear
from smidgen.errors import SmidgenError, UsageError
from smidgen.hosts.host import Block, Host, Position
from smidgen.methods.configs import LEGAL, AdapterConfig, check_pair
from smidgen.methods.method import Tunable, check_size

BEST_INPUTS = ("CA_out", "SA_out")  # section 4: read after the cross-attention
WIDTH = 64
NUM_GROUPS = 32  # of the GroupNorm of the convolutional form


def build(base: Tunable, config: AdapterConfig, generator: torch.Generator) -> dict[str, Bypass]:
    """One adapter in each block that has both positions.

    Raises: SmidgenError if no block has them; UsageError if the output is not behind the input, or
        the share is too small for any width.
    """
    host = base.host
    places = positions(host, config)
    width = config.width or WIDTH
    if config.share is not None:
        num_parameters = sum(parameter.numel() for parameter in base.denoiser.parameters())
        width = nearest_width(host, places, config, config.share * num_parameters)
    adapters = {
        f"{block.module}.adapter": Bypass(
            read.read, write.writes, _body(read, write, width, config), scale=config.scale
        )
        for block, read, write in _both(host, *places)
    }
    for adapter in adapters.values():
        adapter.initialise(generator, zero=config.up_init == "zero")
    return adapters


def positions(host: Host, config: AdapterConfig) -> tuple[str, str]:
    """The input and the output position that `config` means on this host.

    Raises: SmidgenError if the host's blocks do not have them.
    """
    read, write = config.input_position, config.output_position
    if read == "auto":
        inputs = (*BEST_INPUTS, *(() if write == "auto" else (write,)), *LEGAL)
        fits = [i for i in inputs if next(_both(host, i, write), None) is not None]
        if not fits:
            _refuse(host, *(("input", BEST_INPUTS[-1]) if write == "auto" else ("output", write)))
        read = fits[0]
    if write == "auto":
        outputs = (o for o in LEGAL[read] if next(_both(host, read, o), None) is not None)
        write = next(outputs, LEGAL[read][0])
    check_pair(read, write)
    if next(_both(host, read, write), None) is None:
        known = any(read in block.positions for block in host.blocks)
        _refuse(host, *(("output", write) if known else ("input", read)))
    return read, write


def _both(host: Host, read: str, write: str) -> Iterator[tuple[Block, Position, Position]]:
    """The blocks that have an input `read` and an output `write` ("auto": any legal one)."""
    for block in host.blocks:
        for place in LEGAL[read] if write == "auto" else (write,):
            usable = place in LEGAL[read] and place in block.positions
            if read in block.positions and usable and block.positions[place].writes:
                yield block, block.positions[read], block.positions[place]
                break


def _refuse(host: Host, role: str, place: str) -> NoReturn:
    """Raises: SmidgenError that says that this host has no such input or output."""
    known = list(dict.fromkeys(place for block in host.blocks for place in block.positions))
    if role == "output":
        places = [place for block in host.blocks for place in block.positions.items()]
        known = [name for name in known if any(p.writes for place, p in places if place == name)]
    if not known:
        raise SmidgenError(f"adapter has no positions in a {host.family} base; use another method")
    why = "no cross-attention" if place.startswith("CA_") else "no such place"
    raise SmidgenError(
        f"{role} {place} has no block: a {host.family} base has {why}; "
        f"choose the {role} from: {', '.join(known)}"
    )


def nearest_width(host: Host, places: tuple[str, str], config: AdapterConfig, target: float) -> int:
    """The width whose adapters have the number of parameters nearest to `target`; the count is
    linear in the width.

    Raises: UsageError if that would be no width at all.
    """
    with torch.device("meta"):
        one, two = (
            sum(
                parameter.numel()
                for _, read, write in _both(host, *places)
                for parameter in _body(read, write, width, config).parameters()
            )
            for width in (1, 2)
        )
    width = round(1 + (target - one) / (two - one))
    if width < 1:
        raise UsageError(
            f"share {config.share} is {target:,.0f} parameters, but adapters of width 1 have "
            f"{one:,}; give a larger share or another position"
        )
    check_size("width", width)
    return width


def _body(
    read: Position, write: Position, width: int, config: AdapterConfig
) -> Bottleneck | ConvBottleneck | Linear:
    """The form of section 3.2 for tokens or, in residual blocks, for images; or one layer."""
    if config.form == "linear":
        return Linear(read.size, write.size)
    if read.form == "image":
        # 32 groups in every published network; smaller ones may not divide by it
        groups = math.gcd(NUM_GROUPS, read.size)
        return ConvBottleneck(
            read.size, width, write.size, groups=groups, activation=config.activation
        )
    return Bottleneck(read.size, width, write.size, activation=config.activation, bias=True)
