"""Where the edits of a delta act in the trunk of a DiT, sorted by the places of its data flow.

A block's data flow passes a few places; several sites may be one (the output of `attn.proj` is that
of `attn`). At each place shifts and scales that come first are taken apart into vectors, which the
trunk folds into what is small; whatever else acts there stays a function of the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from smidgen.core.edit import Acting
from smidgen.core.edits import Scale, Shift
from smidgen.core.mixed import MixedScale, MixedShift
from smidgen.core.sites import Function, Site
from smidgen.models.dit import DiT

FINAL = "final_layer"

# of a block: place -> the sites that are there, in the order in which a call passes them
PLACES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "block.in": (("", "in"),),
    "modulation": (("adaLN_modulation.1", "out"), ("adaLN_modulation", "out")),
    "norm1.in": (("norm1", "in"),),
    "norm1.out": (("norm1", "out"),),
    "qkv.in": (("attn", "in"), ("attn.qkv", "in")),
    "qkv.out": (("attn.qkv", "out"),),
    "proj.in": (("attn.proj", "in"),),
    "attn.out": (("attn.proj", "out"), ("attn", "out")),
    "norm2.in": (("norm2", "in"),),
    "norm2.out": (("norm2", "out"),),
    "fc1.in": (("mlp", "in"), ("mlp.fc1", "in")),
    "fc1.out": (("mlp.fc1", "out"), ("mlp.act", "in")),
    "fc2.in": (("mlp.act", "out"), ("mlp.fc2", "in")),
    "mlp.out": (("mlp.fc2", "out"), ("mlp", "out")),
    "block.out": (("", "out"),),
}
LAST: Mapping[str, tuple[tuple[str, str], ...]] = {  # the same of the final layer
    "modulation": (("adaLN_modulation.1", "out"), ("adaLN_modulation", "out")),
    "norm.in": (("norm_final", "in"),),
    "norm.out": (("norm_final", "out"),),
    "linear.in": (("linear", "in"),),
    "linear.out": (("linear", "out"), ("", "out")),
}
PRODUCTS = ("qkv.out", "fc1.out", "linear.out")
VECTORS_ONLY = ("modulation", "norm1.out", "norm2.out", "norm.out")  # no tensor is there to change
FOLDED = (*VECTORS_ONLY, *PRODUCTS, "attn.out", "mlp.out")


Vector = Shift | Scale | MixedShift | MixedScale


@dataclass(frozen=True)
class Place:
    """What acts at one place of one block: gain * (y + before) + after, then the functions."""

    affine: tuple[Vector, ...] = ()
    functions: tuple[Function, ...] = ()

    def vectors(
        self, x: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """(before, gain, after) in this precision, None where there is nothing: (D,) or, of a bank,
        (B, D) for the images of the residual stream x (B, N, D).
        """
        before = gain = after = None
        for edit in self.affine:
            vector = _vector(edit, x, dtype)
            if isinstance(edit, Scale | MixedScale):
                gain = vector if gain is None else gain * vector
                after = after if after is None else after * vector
            elif gain is None:
                before = vector if before is None else before + vector
            else:
                after = vector if after is None else after + vector
        return before, gain, after

    def apply(self, y: Tensor) -> Tensor:
        """The functions one after the other."""
        for function in self.functions:
            y = function(y)
        return y


def _vector(edit: Vector, x: Tensor, dtype: torch.dtype) -> Tensor:
    match edit:
        case Scale():
            return edit.gain.to(dtype)
        case Shift():
            return edit.offset.to(dtype)
    name = "gain" if isinstance(edit, MixedScale) else "offset"
    return edit.picked(name, edit.slots(x, edit.sites[0]), x).to(dtype)


@dataclass(frozen=True)
class Plan:
    """What acts at the places of each block and, last, of the final layer; these edits by name, and
    the others.
    """

    blocks: tuple[Mapping[str, Place], ...]
    inside: Mapping[str, Acting]
    outside: Mapping[str, Acting]


@dataclass(frozen=True)
class _Action:
    """A function of an edit, and when its turn is at a place."""

    turn: tuple[int, int]
    edit: Acting
    function: Function


def plan_of(network: nn.Module, edits: Mapping[str, Acting]) -> Plan | None:
    """How these edits act in this network; None if the trunk cannot serve it or them: another
    network than `DiT`, one whose blocks have hooks already, an edit that acts both in the blocks
    and outside, or one that is no vector where the trunk has no tensor.
    """
    if type(network) is not DiT or network.fast is not None or in_the_way(network):
        return None
    parts = (*(f"blocks.{number}" for number in range(len(network.blocks))), FINAL)
    known = _sites_of(parts)
    within = {
        f"{part}.{name}".rstrip(".")
        for part in parts
        for name, _ in network.get_submodule(part).named_modules()
    }
    inside = {
        name: edit
        for name, edit in edits.items()
        if any(site.module in within for site, _ in edit.actions())
    }
    found: list[dict[str, list[_Action]]] = [{} for _ in parts]
    for number, edit in enumerate(inside.values()):
        for site, function in edit.actions():
            if _key(site) not in known or not _plain(site):
                return None
            block, place, order = known[_key(site)]
            outermost = (-1 if site.end == "in" else 1) * len(inside) if edit.encloses else 0
            action = _Action((order, outermost + number), edit, function)
            found[block].setdefault(place, []).append(action)
    blocks = tuple(
        {at: _place(actions.get(at, []), fold=at in FOLDED) for at in places_of(part)}
        for part, actions in zip(parts, found, strict=True)
    )
    if any(block[at].functions for block in blocks for at in VECTORS_ONLY if at in block):
        return None
    outside = {name: edit for name, edit in edits.items() if name not in inside}
    return Plan(blocks, inside, outside)


def _place(actions: list[_Action], *, fold: bool) -> Place:
    """Shifts and scales come apart up to the first function that is something else."""
    actions = sorted(actions, key=lambda action: action.turn)
    affine: list[Vector] = []
    for action in actions:
        if not (fold and isinstance(action.edit, Vector)):
            break
        affine.append(action.edit)
    return Place(tuple(affine), tuple(action.function for action in actions[len(affine) :]))


def places_of(part: str) -> Mapping[str, tuple[tuple[str, str], ...]]:
    """The places of a block or of the final layer, with their sites."""
    return LAST if part == FINAL else PLACES


def _sites_of(parts: Sequence[str]) -> dict[tuple[str, str], tuple[int, str, int]]:
    """(module, end) -> number of the part, place there, and which of the sites there it is."""
    return {
        (f"{part}.{module}".rstrip("."), end): (number, place, order)
        for number, part in enumerate(parts)
        for place, sites in places_of(part).items()
        for order, (module, end) in enumerate(sites)
    }


def _key(site: Site) -> tuple[str, str]:
    return site.module, site.end


def _plain(site: Site) -> bool:
    """The first argument or the output, its channels last."""
    return site.argument is None and site.index is None and site.axis in (-1, 2)


def hooked(module: nn.Module) -> bool:
    """Whether a call of `module` is watched or changed anywhere in it."""
    return any(one._forward_hooks or one._forward_pre_hooks for one in module.modules())


def in_the_way(network: DiT) -> bool:
    """Whether anything has hooks in the parts that the trunk computes without calling them."""
    return hooked(network.blocks) or hooked(network.final_layer)
