"""How a base's network is called, whoever calls it. B images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from smidgen.core.storage import computes_in
from smidgen.errors import UsageError
from smidgen.hosts.family import Condition, Family
from smidgen.processes import own_device, world_size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Network = Callable[[Tensor, Tensor, Condition], Tensor]  # (x_t, t, condition) -> output


def calling(
    family: Family,
    denoiser: nn.Module,
    guidance: float | None = None,
    predict: Network | None = None,
) -> Network:
    """The denoiser as its family calls it, or what `predict` is in its place; a guidance that it
    has as an input is 1 or this.
    """

    def plain(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return family.predict(denoiser, x, t, condition)

    call = predict or plain
    if family.guidance != "embedded":
        return call
    scale = 1.0 if guidance is None else guidance

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        told = torch.full((len(x),), scale, dtype=torch.float32, device=x.device)
        return call(x, t, {**condition, "guidance": told})

    return network


def device_of(name: str) -> str:
    """A device by its name, "auto" as what this machine has; each of several processes takes its
    own accelerator, of which a Mac has one.

    Raises: UsageError for cuda or mps where there is none, or mps for several processes.
    """
    has_mps = torch.backends.mps.is_available()
    if name == "auto":
        alone = has_mps and world_size() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if alone else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no cuda device was found; use --device cpu")
    if name == "mps" and not has_mps:
        raise UsageError("no mps device was found, which Macs with Apple's chips have; use cpu")
    if name == "mps" and world_size() > 1:
        raise UsageError("several processes have no mps device of their own; use --device cpu")
    return own_device(name)


def dtype_of(network: nn.Module) -> torch.dtype:
    """The precision in which a network computes and wants its input."""
    return computes_in(network)
