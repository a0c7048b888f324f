"""BitFit (Zaken et al. 2022, arXiv 2106.10199): train every bias, here as a shift of its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Shift
from smidgen.errors import SmidgenError
from smidgen.hosts.host import Host
from smidgen.methods.label_table import label_edits
from smidgen.methods.method import Tunable, assemble, refuse_where_impossible


@dataclass(frozen=True, kw_only=True)
class Config:
    """BitFit has no options."""


def build(
    base: Tunable, config: Config, classes: Sequence[str], generator: torch.Generator
) -> Delta:
    """A shift for every bias of the base, and the label table if there is one.

    Raises: SmidgenError for a base without a bias.
    """
    refuse_where_impossible(base.host, "bitfit")
    if not base.host.biases:
        raise SmidgenError(
            f"bitfit trains biases and a {base.host.family} base has none; choose another method"
        )
    table = label_edits(base, classes, generator)
    return assemble(base, "bitfit", config, classes, bias_shifts(base.host), table)


def bias_shifts(host: Host) -> dict[str, Shift]:
    """A shift at the output of every module that has a bias: the same as training the bias."""
    return {f"{site.module}.bias": Shift(site, host.sizes[site]) for site in host.biases}
