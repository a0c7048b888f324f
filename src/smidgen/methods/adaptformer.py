"""AdaptFormer (Chen et al. 2022, arXiv 2205.13535), section 3.2: a bottleneck of width m beside or
behind each feed-forward, s * up(relu(down(h))), in the two forms of the DiffFit paper's Table 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from smidgen.core.bypass import Bottleneck, Bypass
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.methods.bypass import building, start
from smidgen.methods.label_table import label_edits
from smidgen.methods.method import (
    Tunable,
    assemble,
    check_scale,
    check_size,
    refuse_where_impossible,
)

READ_TAP = {"parallel": "ff.in", "sequential": "ff.out"}
WRITE_TAP = "ff.out"  # before the gate, where the block has one


@dataclass(frozen=True, kw_only=True)
class Config:
    """The bottleneck of every feed-forward.

    `form`: parallel reads what the feed-forward reads, sequential what it returns; both add to what
    it returns. `width` of the bottleneck; `scale` of what it adds, fixed (0.1 in the paper).
    """

    form: Literal["parallel", "sequential"] = "parallel"
    width: int = 64
    scale: float = 0.1

    def __post_init__(self) -> None:
        if self.form not in READ_TAP:
            raise UsageError(f'form is "{self.form}"; choose from: {", ".join(READ_TAP)}')
        check_size("width", self.width)
        check_scale(self.scale)


def build(
    base: Tunable, config: Config, classes: Sequence[str], generator: torch.Generator
) -> Delta:
    """A bottleneck for each block with a feed-forward, and the label table if there is one."""
    host = base.host
    refuse_where_impossible(host, "adaptformer")
    bottlenecks: dict[str, Bypass] = {}
    with building(base):
        for block in host.blocks:
            if WRITE_TAP not in block.taps or READ_TAP[config.form] not in block.taps:
                continue
            read, write = block.taps[READ_TAP[config.form]], block.taps[WRITE_TAP]
            size = host.sizes[write]  # a feed-forward returns as many channels as it reads
            body = Bottleneck(size, config.width, size, activation="relu", bias=True)
            name = f"{block.module}.adaptformer"
            bottlenecks[name] = Bypass(read, (write,), body, scale=config.scale)
    if not bottlenecks:
        raise SmidgenError(
            f"adaptformer needs a block with a feed-forward; a {host.family} base has none"
        )
    start(bottlenecks, generator, zero=True)
    table = label_edits(base, classes, generator)
    return assemble(base, "adaptformer", config, classes, table, bottlenecks)
