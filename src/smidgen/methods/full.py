"""Full fine-tuning: a trained copy of every parameter that the host does not fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Weight
from smidgen.methods.label_table import label_table
from smidgen.methods.method import Tunable, assemble


@dataclass(frozen=True, kw_only=True)
class Config:
    """Full fine-tuning has no options."""


def build(
    base: Tunable, config: Config, classes: Sequence[str], generator: torch.Generator
) -> Delta:
    """A copy of each module's own parameters, except the fixed ones; the label table as in all
    methods. The copies are named like the base's tensors.
    """
    table_module = base.host.tap("label.out").module
    edits: dict[str, Edit] = {}
    for module, owner in base.denoiser.named_modules():
        copies = {
            name: parameter.detach().clone()
            for name, parameter in owner.named_parameters(recurse=False)
            if f"{module}.{name}".removeprefix(".") not in base.host.fixed
        }
        if copies and module != table_module:
            edits[module or "root"] = Weight(module, copies)
    tables = {"label_table": label_table(base, classes, generator)}
    return assemble(base, "full", config, classes, edits, tables)
