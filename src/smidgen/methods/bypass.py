"""How the bypasses of a method begin: shared by LoRA, AdaptFormer and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch

from smidgen.core.bypass import Bypass
from smidgen.methods.method import Tunable


def building(base: Tunable) -> AbstractContextManager[object]:
    """Where new modules are made: on the meta device beside a base that is there, else the CPU,
    where the generator draws.
    """
    on_meta = next(base.denoiser.parameters()).is_meta
    return torch.device("meta") if on_meta else nullcontext()


def start(bypasses: Mapping[str, Bypass], generator: torch.Generator, *, zero: bool) -> None:
    """Initialise all bypasses in order; `zero`: so that they add nothing."""
    for bypass in bypasses.values():
        bypass.initialise(generator, zero)
