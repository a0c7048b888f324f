"""Adapters at any position of a block: Xiang et al. 2023, "A Closer Look at Parameter-Efficient
Tuning in Diffusion Models" (arXiv 2303.18181), sections 3.1 to 3.3.

What is read at the input position goes through a bottleneck and is added, times a scale, at the
output position. Which sites a position is in a block is the host's knowledge.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, get_args

import torch

from smidgen.core.bypass import Bottleneck, Bypass, ConvBottleneck
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.hosts.host import Block, Host, Position
from smidgen.methods.bypass import building, start
from smidgen.methods.label_table import label_edits
from smidgen.methods.method import (
    Tunable,
    assemble,
    check_scale,
    check_size,
    refuse_where_impossible,
)

Place = Literal[
    "SA_in", "SA_out", "CA_in", "CA_c", "CA_out", "FFN_in", "FFN_out", "Trans_out",
    "Res_in", "Res_out",
]  # fmt: skip
Output = Literal["SA_in", "CA_in", "CA_c", "FFN_in", "Trans_out", "Res_in", "Res_out"]
Activation = Literal["relu", "sigmoid", "silu", "identity"]
Auto = Literal["auto"]

# What flows through a block, in order. What is read on one line may be added there, not before it,
# and never on another line.
FLOWS = (
    ("SA_in", "SA_out", "CA_in", "CA_out", "FFN_in", "FFN_out", "Trans_out"),
    ("CA_c",),
    ("Res_in", "Res_out"),
)
LEGAL: Mapping[str, tuple[str, ...]] = {  # input -> its outputs, the nearest first: 20 pairs
    place: tuple(later for later in flow[number:] if later in get_args(Output))
    for flow in FLOWS
    for number, place in enumerate(flow)
}
BEST_INPUTS = ("CA_out", "SA_out")  # section 4: read after the cross-attention
WIDTH = 64
NUM_GROUPS = 32  # of the GroupNorm of the convolutional form


@dataclass(frozen=True, kw_only=True)
class Config:
    """The paper's recipe by default: read after the cross-attention, add before the feed-forward.

    `input_position`: where it reads, auto: CA_out, without cross-attention SA_out.
    `output_position`: where it adds, auto: the next place behind the input where something can be
    added (FFN_in behind CA_out). `width` of the bottleneck (64) or instead `share`, the part of the
    base's parameters that the adapters should have, which the nearest width gives. `scale` of what
    is added, fixed. `init`: zero starts without effect, pytorch with PyTorch's default for all
    weights, as the paper's authors do.
    """

    input_position: Place | Auto = "auto"
    output_position: Output | Auto = "auto"
    activation: Activation = "relu"
    width: int | None = None
    share: float | None = None
    scale: float = 1.0
    init: Literal["zero", "pytorch"] = "zero"

    def __post_init__(self) -> None:
        _check_choice("input_position", self.input_position, (*get_args(Place), "auto"))
        _check_choice("output_position", self.output_position, (*get_args(Output), "auto"))
        _check_choice("activation", self.activation, get_args(Activation))
        _check_choice("init", self.init, ("zero", "pytorch"))
        if self.width is not None and self.share is not None:
            raise UsageError("width and share both say how wide the adapters are; give one")
        if self.width is not None:
            check_size("width", self.width)
        if self.share is not None and not 0 < self.share < 1:
            raise UsageError(f"share is {self.share}; expected a number between 0 and 1")
        check_scale(self.scale)
        if "auto" not in (self.input_position, self.output_position):
            check_pair(self.input_position, self.output_position)


def build(
    base: Tunable, config: Config, classes: Sequence[str], generator: torch.Generator
) -> Delta:
    """One adapter in each block that has both positions, and the label table if there is one.

    Raises: SmidgenError if no block has them; UsageError if the output is not behind the input, or
        the share is too small for any width.
    """
    host = base.host
    refuse_where_impossible(host, "adapter")
    places = positions(host, config)
    with building(base):
        width = config.width or WIDTH
        if config.share is not None:
            width = nearest_width(host, places, config, config.share * _num_parameters(base))
        adapters = {
            f"{block.module}.adapter": Bypass(
                read.read, write.writes, _body(read, write, width, config), scale=config.scale
            )
            for block, read, write in _both(host, *places)
        }
    start(adapters, generator, zero=config.init == "zero")
    table = label_edits(base, classes, generator)
    return assemble(base, "adapter", config, classes, table, adapters)


def check_pair(read: str, write: str) -> None:
    """Raises: UsageError unless something read at `read` can be added at `write` in a block."""
    if write in LEGAL[read]:
        return
    if any(read in flow and write in flow for flow in FLOWS):
        problem = f'input "{read}" comes after output "{write}" in this block'
    else:
        problem = f'what is read at input "{read}" cannot be added at output "{write}"'
    raise UsageError(f"{problem}; choose the output from: {', '.join(LEGAL[read])}")


def positions(host: Host, config: Config) -> tuple[str, str]:
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
        known = [p for p in known if any(_writable(block, p) for block in host.blocks)]
    if not known:
        raise SmidgenError(f"adapter has no positions in a {host.family} base; use another method")
    why = "no cross-attention" if place.startswith("CA_") else "no such place"
    raise SmidgenError(
        f"{role} {place} has no block: a {host.family} base has {why}; "
        f"choose the {role} from: {', '.join(known)}"
    )


def _writable(block: Block, place: str) -> bool:
    return place in block.positions and bool(block.positions[place].writes)


def nearest_width(host: Host, places: tuple[str, str], config: Config, target: float) -> int:
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
    read: Position, write: Position, width: int, config: Config
) -> Bottleneck | ConvBottleneck:
    """The form of section 3.2 for tokens or, in residual blocks, for images."""
    if read.form == "image":
        # 32 groups in every published network; smaller ones may not divide by it
        groups = math.gcd(NUM_GROUPS, read.size)
        return ConvBottleneck(
            read.size, width, write.size, groups=groups, activation=config.activation
        )
    return Bottleneck(read.size, width, write.size, activation=config.activation, bias=True)


def _num_parameters(base: Tunable) -> int:
    return sum(parameter.numel() for parameter in base.denoiser.parameters())


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f'{name} is "{value}"; choose from: {", ".join(choices)}')
