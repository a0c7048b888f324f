"""Deltas of Stable Diffusion's UNets in a network of the original code, as ComfyUI has it: the same
edits under that code's names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from smidgen.core.delta import Delta
from smidgen.core.edit import Edit
from smidgen.core.edits import Weight, edit_from_spec
from smidgen.core.fingerprint import fingerprint, fingerprints_match
from smidgen.core.partial import DENOISER, part_of
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError, UsageError
from smidgen.hosts.unet_names import diffusers_names

FAMILY = "unet"
ARGUMENTS = {"encoder_hidden_states": "context"}  # what the original code calls arguments


def for_original_unet(delta: Delta, network: nn.Module) -> Delta:
    """The edits of `delta` in the denoiser, for this network of the original code, on its device
    and, of copies of weights, in its precision; those in text encoders are left out.

    Raises: SmidgenError for a delta of another family, a network that is no such UNet, or lacks a
        module; UsageError if all edits are in text encoders.
    """
    if delta.provenance.host != FAMILY:
        raise SmidgenError(
            f"the delta is of a {delta.provenance.host} base; only those of UNets (SD 1.x, 2.x, "
            "SDXL) act in a network of the original code: fold it, or export LoRA"
        )
    if all(edit.component for edit in delta.edits.values()):
        raise UsageError(
            "all edits of this delta are in text encoders, and none in the UNet; fold it into the "
            "base (smidgen fold), or write its words for other programs (smidgen convert)"
        )
    own = part_of(delta, DENOISER)
    assert own is not None, "it is not none that was asked for"
    names = inner_to_outer(network)
    edits = {name: _renamed(edit, names) for name, edit in own.edits.items()}
    found = Delta(edits, own.provenance).to(next(network.parameters()).device)
    for edit in found.edits.values():
        if isinstance(edit, Weight):
            for name, copy in edit.replaced().items():
                copy.data = copy.data.to(network.get_parameter(name).dtype)
    return found


def inner_to_outer(network: nn.Module) -> dict[str, str]:
    """The original code's name of each module that diffusers has, by diffusers' name.

    Raises: SmidgenError as `diffusers_names`.
    """
    outer = [name for name, _ in network.named_modules()]
    return {inner: name for name, inner in diffusers_names(outer).items()}


def is_base_of(delta: Delta, network: nn.Module) -> bool:
    """Whether these are the weights that the delta was made for, up to rounding."""
    names = inner_to_outer(network)
    state = {
        f"{inner}.{name}": tensor
        for inner, outer in names.items()
        for name, tensor in network.get_submodule(outer).named_parameters(recurse=False)
    }
    return fingerprints_match(delta.provenance.fingerprint, fingerprint(state))


def _renamed(edit: Edit, names: Mapping[str, str]) -> Edit:
    """The same edit, with copies of its values."""

    def outer(module: str) -> str:
        if module not in names:
            raise SmidgenError(
                f"this network has no {module}, at which the delta acts; give the model that the "
                "delta was made for"
            )
        return names[module]

    spec = edit.spec()
    spec["sites"] = [
        Site(
            outer(site.module),
            site.end,
            ARGUMENTS.get(site.argument, site.argument) if site.argument else None,
            site.index,
            site.axis,
            site.repeats,
        ).spec()
        for site in edit.sites
    ]
    if isinstance(edit, Weight):
        spec["module"] = outer(edit.target)
    with torch.device("meta"):
        found = edit_from_spec(spec)
    values = {name: value.detach().clone() for name, value in edit.state_dict().items()}
    found.load_state_dict(values, assign=True)
    return found
