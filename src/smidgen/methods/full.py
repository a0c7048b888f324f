"""Full fine-tuning: a trained copy of every parameter that the host does not fix; on demand of the
text encoders' too (DreamBooth, arXiv 2208.12242).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from smidgen.core.edits import Weight
from smidgen.core.storage import runs_in
from smidgen.core.widening import QUANTISED
from smidgen.errors import SmidgenError
from smidgen.methods.configs import NoOptions
from smidgen.methods.method import Encoder, Tunable

CLIPS = ("CLIPTextModel", "CLIPTextModelWithProjection")  # classes of transformers


def build(base: Tunable, config: NoOptions, generator: torch.Generator) -> dict[str, Weight]:
    """A copy of each module's own parameters, except the fixed ones and the label table, which has
    an edit of its own. The copies are named like the base's tensors.

    Raises: SmidgenError for a base that uses one parameter in two places, or is kept in 8 bit.
    """
    _check_untied(base.denoiser)
    fixed = set(base.host.fixed)
    if base.host.has_labels:
        module = base.host.tap("label.out").module
        table = base.denoiser.get_submodule(module)
        fixed |= {f"{module}.{name}" for name, _ in table.named_parameters()}
    return _copies(base.denoiser, fixed)


def build_in_encoders(
    encoders: Sequence[Encoder], config: NoOptions, generator: torch.Generator, token: str | None
) -> dict[str, Weight]:
    """A copy of every parameter of the text encoders that are CLIPs, which diffusers' own trainers
    train too: language models stay as they are.

    Raises: SmidgenError if none of them is a CLIP.
    """
    chosen = [one for one in encoders if type(one.network).__name__ in CLIPS]
    if not chosen:
        kinds = ", ".join(type(one.network).__name__ for one in encoders)
        raise SmidgenError(
            f"train_text_encoder trains CLIPs, and this base reads prompts with: {kinds}; leave it "
            "out"
        )
    edits: dict[str, Weight] = {}
    for one in chosen:
        _check_untied(one.network)
        for name, edit in _copies(one.network, frozenset()).items():
            edit.component = one.component
            edits[f"{one.component}.{name}"] = edit
    return edits


def _copies(network: nn.Module, fixed: Collection[str]) -> dict[str, Weight]:
    copies = {
        name: trained_copy(network, parameter, "full")
        for name, parameter in network.named_parameters()
        if name not in fixed
    }
    return {
        module or "root": Weight(module, tensors) for module, tensors in by_owner(copies).items()
    }


def trained_copy(network: nn.Module, own: nn.Parameter, method: str) -> Tensor:
    """One of a network's parameters in the precision in which the network runs, as `method` copies
    it.

    Raises: SmidgenError for one in 8 or 4 bit.
    """
    if precision := QUANTISED.get(own.dtype):
        raise SmidgenError(
            f"{method} trains copies of weights, which this base keeps in {precision}; load it "
            f"without base_precision {precision}, or use a method that trains what is new, such as "
            "lora"
        )
    return own.detach().to(runs_in(network, own), copy=True)


def _check_untied(network: nn.Module) -> None:
    names = {name for name, _ in network.named_parameters()}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if name not in names:
            same = next(one for one, p in network.named_parameters() if p is parameter)
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
