"""Full fine-tuning: a trained copy of every parameter that the host does not fix."""

from __future__ import annotations

import torch
from torch import Tensor

from smidgen.core.edits import Weight
from smidgen.core.storage import runs_in
from smidgen.errors import SmidgenError
from smidgen.methods.configs import NoOptions
from smidgen.methods.method import Tunable


def build(base: Tunable, config: NoOptions, generator: torch.Generator) -> dict[str, Weight]:
    """A copy of each module's own parameters, except the fixed ones and the label table, which has
    an edit of its own. The copies are named like the base's tensors.

    Raises: SmidgenError for a base that uses one parameter in two places.
    """
    _check_untied(base)
    fixed = set(base.host.fixed)
    if base.host.has_labels:
        module = base.host.tap("label.out").module
        table = base.denoiser.get_submodule(module)
        fixed |= {f"{module}.{name}" for name, _ in table.named_parameters()}
    copies = {
        name: parameter.detach().to(runs_in(base.denoiser, parameter), copy=True)
        for name, parameter in base.denoiser.named_parameters()
        if name not in fixed
    }
    return {
        module or "root": Weight(module, tensors) for module, tensors in by_owner(copies).items()
    }


def _check_untied(base: Tunable) -> None:
    names = {name for name, _ in base.denoiser.named_parameters()}
    for name, parameter in base.denoiser.named_parameters(remove_duplicate=False):
        if name not in names:
            same = next(one for one, p in base.denoiser.named_parameters() if p is parameter)
            raise SmidgenError(
                f"full does not work on a base where {same} and {name} are one parameter, of "
                "which there would be two copies; use another method"
            )


def by_owner(parameters: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Parameters by the module that has them, under their names there.

    The parameters within a module that has some of its own as well, such as a block with a
    `scale_shift_table`, count as the outer module's: an edit's name is never part of another's.
    """
    owners = {name.rpartition(".")[0] for name in parameters}
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in parameters.items():
        path = name.split(".")[:-1]
        outer = (".".join(path[:length]) for length in range(len(path) + 1))
        owner = next(module for module in outer if module in owners)
        found.setdefault(owner, {})[name.removeprefix(f"{owner}." if owner else "")] = tensor
    return found
