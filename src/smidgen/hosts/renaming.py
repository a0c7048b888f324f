"""Renaming: one network under two sets of names, of which one stacks what the other keeps apart.

The outer names are those of the original code of SD, SD3 and Flux (or of our own DiT), the inner
those of diffusers: there queries, keys and values are three linears, in most original codes one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smidgen.errors import SmidgenError

ENDS = ("weight", "bias")
FINAL_MODULATION = "final_layer.adaLN_modulation.1"  # of SD3 and Flux


@dataclass(frozen=True, kw_only=True)
class Renaming:
    """Outer module -> the inner modules whose output rows it stacks, in this order.

    `swapped` names outer modules whose two halves of rows are in the other order than inside
    (shift before scale); each has one inner module. `tensors` are outer -> inner names of tensors
    that are no module's weight or bias.
    """

    modules: Mapping[str, tuple[str, ...]]
    swapped: frozenset[str] = frozenset()
    tensors: Mapping[str, str] = field(default_factory=dict)


def modules_of(state: Collection[str]) -> frozenset[str]:
    """The modules that have a weight or a bias in a state dict."""
    return frozenset(key.rpartition(".")[0] for key in state if key.rpartition(".")[2] in ENDS)


def rename(state: Mapping[str, Tensor], renaming: Renaming, what: str) -> dict[str, Tensor]:
    """A state dict with inner names under its outer names; rows are stacked and halves swapped.

    Outer modules of which `state` has nothing are left out (a model without guidance embedding).

    Raises: SmidgenError if a tensor has no outer name, or a stack would lack one of its parts;
        `what` names the format.
    """
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()
    for outer, parts in renaming.modules.items():
        for end in ENDS:
            keys = [f"{part}.{end}" for part in parts]
            found = [key for key in keys if key in state]
            if not found:
                continue
            if found != keys:
                lacking = next(key for key in keys if key not in state)
                raise SmidgenError(f"{what} stacks {outer} of several, of which {lacking} lacks")
            rows = torch.cat([state[key] for key in keys]) if len(keys) > 1 else state[keys[0]]
            renamed[f"{outer}.{end}"] = swap_halves(rows) if outer in renaming.swapped else rows
            used.update(keys)
    for outer, inner in renaming.tensors.items():
        if inner in state:
            renamed[outer] = state[inner]
            used.add(inner)
    check_all_used(state, used, what)
    return renamed


def restore(
    state: Mapping[str, Tensor],
    renaming: Renaming,
    shapes: Mapping[str, Sequence[int]],
    what: str,
) -> dict[str, Tensor]:
    """The reverse of `rename`: the tensors of these inner names and shapes of a state dict with
    outer names. A linear may be there as a convolution of one pixel.

    Raises: SmidgenError if one is missing or has another shape, or one of `state` is no part of
        them; `what` names the format.
    """
    found: dict[str, Tensor] = {}
    used: set[str] = set()

    def take(outer: str, inner: Sequence[str]) -> None:
        if outer not in state:
            raise SmidgenError(f"{what} lacks {outer}; get the file again")
        used.add(outer)
        rows, places = state[outer], [tuple(shapes[key]) for key in inner]
        height = sum(shape[0] for shape in places)
        expected = [height, *places[0][1:]]
        if _without_ones(rows.shape) != _without_ones(expected):
            raise SmidgenError(
                f"{what}: {outer} is {tuple(rows.shape)}, expected {tuple(expected)}"
            )
        for key, shape in zip(inner, places, strict=True):
            part, rows = rows[: shape[0]], rows[shape[0] :]
            found[key] = part.reshape(shape)

    for outer, parts in renaming.modules.items():
        for end in ENDS:
            inner = [f"{part}.{end}" for part in parts]
            if inner[0] in shapes:
                take(f"{outer}.{end}", inner)
                if outer in renaming.swapped:
                    found[inner[0]] = swap_halves(found[inner[0]])
    for outer, key in renaming.tensors.items():
        if key in shapes:
            take(outer, [key])
    left = [key for key in shapes if key not in found]
    if left:
        raise SmidgenError(f"{what} has no name for {left[0]}")
    unknown = [key for key in state if key not in used]
    if unknown:
        raise SmidgenError(f"{what} has {unknown[0]}, which is no part of its configuration")
    return found


def _without_ones(shape: Sequence[int]) -> list[int]:
    """The sides that are no axis of one entry."""
    return [side for side in shape if side != 1]


def check_all_used(state: Collection[str], used: Collection[str], what: str) -> None:
    """Raises: SmidgenError if a tensor of `state` would not be written."""
    left = [key for key in state if key not in used]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise SmidgenError(
            f"{what} has no place for {left[0]}{more}; write a diffusers folder instead"
        )


def swap_halves(rows: Tensor) -> Tensor:
    """(a; b) -> (b; a): diffusers' AdaLayerNormContinuous has scale before shift."""
    first, second = rows.chunk(2)
    return torch.cat([second, first])


def count_blocks(names: Collection[str], stem: str) -> int:
    """One more than the highest number that follows `stem` in dotted module names."""
    behind = (name.removeprefix(f"{stem}.") for name in names if name.startswith(f"{stem}."))
    numbers = (rest.partition(".")[0] for rest in behind)
    return max((int(number) for number in numbers if number.isdigit()), default=-1) + 1


def qkv(attention: str) -> tuple[str, ...]:
    """Diffusers' three linears of an attention, as original codes stack them."""
    return tuple(f"{attention}.to_{letter}" for letter in "qkv")


def added_qkv(attention: str) -> tuple[str, ...]:
    """The same for the text's stream."""
    return tuple(f"{attention}.add_{letter}_proj" for letter in "qkv")
