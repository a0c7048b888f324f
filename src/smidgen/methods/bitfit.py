"""BitFit (Zaken et al. 2022, arXiv 2106.10199): train every bias, here as a shift of its output."""

from __future__ import annotations

import torch

from smidgen.core.edits import Shift
from smidgen.errors import SmidgenError
from smidgen.hosts.host import Host
from smidgen.methods.configs import NoOptions
from smidgen.methods.method import Tunable


def build(base: Tunable, config: NoOptions, generator: torch.Generator) -> dict[str, Shift]:
    """A shift for every bias of the base. Raises: SmidgenError for a base without a bias."""
    if not base.host.biases:
        raise SmidgenError(
            f"bitfit trains biases and a {base.host.family} base has none; choose another method"
        )
    return bias_shifts(base.host)


def bias_shifts(host: Host) -> dict[str, Shift]:
    """A shift at the output of every module that has a bias: the same as training the bias."""
    return {f"{site.module}.bias": Shift(site, host.sizes[site]) for site in host.biases}
