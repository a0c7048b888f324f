"""AdaptFormer (Chen et al. 2022, arXiv 2205.13535), section 3.2: a bottleneck of width m beside or
behind each feed-forward, s * up(relu(down(h))), in the two forms of the DiffFit paper's Table 1.

Beside it, the paper's equation 5 reads the normed stream, and the code of its authors the stream
before the norm (github.com/ShoufaChen/AdaptFormer): option `read`. Their dropout is left out.
"""

from __future__ import annotations

import torch
from torch import nn

from smidgen.core.bypass import Bottleneck, Bypass
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from smidgen.hosts.host import Block, Host
from smidgen.methods.configs import AdaptFormerConfig
from smidgen.methods.method import Tunable

READ_TAP = {"parallel": "ff.in", "sequential": "ff.out"}
WRITE_TAP = "ff.out"  # before the gate, where the block has one
STREAM = "FFN_in"  # the position of the stream that the feed-forward's norm reads


def build(
    base: Tunable, config: AdaptFormerConfig, generator: torch.Generator
) -> dict[str, Bypass]:
    """A bottleneck for each block with a feed-forward. It starts as in the authors' code: down as
    PyTorch's linears but with a bias of 0, up 0.

    Raises: SmidgenError if no block has a feed-forward, or the stream before one is not known.
    """
    host = base.host
    bottlenecks: dict[str, Bypass] = {}
    for block in host.blocks:
        if WRITE_TAP not in block.taps or READ_TAP[config.form] not in block.taps:
            continue
        read, write = block.taps[READ_TAP[config.form]], block.taps[WRITE_TAP]
        if config.read == "stream":
            read = _stream(host, block)
        size = host.sizes[write]  # a feed-forward returns as many channels as it reads
        body = Bottleneck(size, config.width, size, activation="relu", bias=True)
        name = f"{block.module}.adaptformer"
        bottlenecks[name] = Bypass(read, (write,), body, scale=config.scale)
    if not bottlenecks:
        raise SmidgenError(
            f"adaptformer needs a block with a feed-forward; a {host.family} base has none"
        )
    for bottleneck in bottlenecks.values():
        bottleneck.initialise(generator)
        nn.init.zeros_(bottleneck.get_parameter("down.bias"))
    return bottlenecks


def _stream(host: Host, block: Block) -> Site:
    """Where the residual stream is before the norm of the block's feed-forward."""
    if STREAM not in block.positions:
        raise SmidgenError(
            f'read "stream" needs the residual stream before a feed-forward, which the host of '
            f'{host.family} does not name in {block.module}; use read "normed"'
        )
    return block.positions[STREAM].read
