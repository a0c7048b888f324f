"""LoRA as plain factors: what a delta and a file of another program have in common.

A LoRA of rank r adds scale * up @ down to a weight: down (r, in) or (r, in, kh, kw), up (out, r) or
(out, r, 1, 1). Here factors go between one stacked linear and its parts, names in lora_names.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.hosts.renaming import swap_halves

Rows = tuple[int, int]
Start = Literal["pissa", "olora"]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The LoRA of one module, or of its output rows from `rows[0]` to `rows[1]`."""

    module: str
    down: Tensor
    up: Tensor
    scale: float = 1.0
    rows: Rows | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def whole(factors: Factors, size: int) -> Factors:
    """The same LoRA on all `size` rows of its module: zero at the others."""
    if factors.rows is None:
        return factors
    start, stop = factors.rows
    up = factors.up.new_zeros(size, *factors.up.shape[1:])
    up[start:stop] = factors.up
    return replace(factors, up=up, rows=None)


def without_start(factors: Factors, weight: Tensor, start: Start) -> Factors:
    """The LoRA of twice the rank that does to `weight` (out, in) what the trained model does, whose
    training took the product of the factors' start out of it: W - s B0 A0 + s B A. As PEFT
    computes the start, in float32.

    "pissa" (arXiv 2404.02948): s B0 A0 is the largest `rank` singular values and vectors of W.
    "olora" (arXiv 2406.01775): B0 A0 is Q R of W, their first columns and rows.

    Raises: SmidgenError if W is no matrix of plain numbers, or of lower rank than the factors.
    """
    rank = factors.rank
    if weight.ndim != 2 or not weight.is_floating_point() or min(weight.shape) < rank:
        shape = f"{str(weight.dtype).removeprefix('torch.')} of {tuple(weight.shape)}"
        raise SmidgenError(
            f"{factors.module}: a {start} of rank {rank} started at the base's weight, which here "
            f"is {shape}; load the base in 16 or 32 bit"
        )
    own = weight.detach().to("cpu", torch.float32)
    if start == "pissa":
        left, values, right = torch.linalg.svd(own, full_matrices=False)
        up, down = left[:, :rank] * (values[:rank] / factors.scale), right[:rank]
    else:
        left, right = torch.linalg.qr(own)
        up, down = left[:, :rank], right[:rank]
    return replace(
        factors,
        down=torch.cat([factors.down.float(), down]),
        up=torch.cat([factors.up.float(), -up], dim=1),
    )


def merge(several: Sequence[Factors]) -> Factors:
    """One LoRA of the summed rank for several on all rows of one module: files hold one of each."""
    if len(several) == 1:
        return several[0]
    first = several[0]
    same = all(part.scale == first.scale for part in several)
    ups = [part.up if same else part.up * part.scale for part in several]
    return replace(
        first,
        down=torch.cat([part.down for part in several]),
        up=torch.cat(ups, dim=1),
        scale=first.scale if same else 1.0,
    )


def stack(
    parts: Sequence[Sequence[Factors]], sizes: Sequence[int], module: str, *, swapped: bool
) -> Factors:
    """The LoRA of a module that stacks the rows of several, each with its LoRAs (none: no change).

    Their ranks add up: each part keeps its own down, and its up is zero at the others' rows.
    """
    total, start, placed = sum(sizes), 0, []
    for several, size in zip(parts, sizes, strict=True):
        for factors in several:
            full = whole(factors, size)
            placed.append(whole(replace(full, rows=(start, start + size)), total))
        start += size
    merged = replace(merge(placed), module=module)
    return replace(merged, up=swap_halves(merged.up)) if swapped else merged


def split(
    factors: Factors,
    targets: Sequence[tuple[str, Rows | None]],
    sizes: Sequence[int],
    *,
    swapped: bool,
) -> list[Factors]:
    """The LoRAs of the modules whose rows one module stacks: `stack` undone.

    Each gets the directions that change its rows; where a part is not changed at all, there is
    none. A LoRA that is all zero (fresh) is given to every part.
    """
    up = whole(factors, sum(sizes)).up
    up = swap_halves(up) if swapped else up
    found, start = [], 0
    is_fresh = not bool(up.any())
    for (module, rows), size in zip(targets, sizes, strict=True):
        part = up[start : start + size]
        start += size
        acts = part.flatten(2).any(2).any(0) if part.ndim > 2 else part.any(0)
        if is_fresh or len(targets) == 1:
            acts = torch.ones_like(acts)
        if bool(acts.any()):
            down, part = factors.down[acts].clone(), part[:, acts].clone()
            found.append(replace(factors, module=module, rows=rows, down=down, up=part))
    return found
