"""LoRA (Hu et al. 2021, arXiv 2106.09685): W h + (alpha / rank) up(down(h)) beside linears and
convolutions. Without options it is a row of the DiffFit paper's Table 1: rank 8 on q and v.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import cast

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from smidgen.core.bypass import Bottleneck, Bypass, Conv
from smidgen.core.sites import Site
from smidgen.errors import UsageError, closest
from smidgen.hosts.host import Host, Linear
from smidgen.methods.configs import LoRAConfig, words
from smidgen.methods.method import Tunable

SELF = "self."  # before a role: of self- or joint attention only, not of every attention
FUSED = "qkv"
GROUPS = ("linear", "conv", "all")


def build(base: Tunable, config: LoRAConfig, generator: torch.Generator) -> dict[str, Bypass]:
    """A bypass without effect beside every target."""
    alpha = config.rank if config.alpha is None else config.alpha
    pairs = {
        name_of(linear): bypass_beside(base.denoiser, linear, config.rank, alpha / config.rank)
        for linear in chosen(base.host, base.denoiser, words(config.targets))
    }
    for pair in pairs.values():
        pair.initialise(generator)
    return pairs


def name_of(linear: Linear) -> str:
    """The name in a delta of the pair beside a linear, or beside those of its rows."""
    return f"{linear.module}.lora" + ("" if linear.rows is None else f"_{linear.role}")


def bypass_beside(model: nn.Module, linear: Linear, rank: int, scale: float) -> Bypass:
    """up(down(h)) from the input of a linear or convolution to its output, or to some rows of it.

    Beside a convolution, down has its geometry and up is 1 x 1, as in PEFT.
    """
    axis, conv = -1, None
    if linear.conv:
        axis, conv = 1, Conv.of(model.get_submodule(linear.module))
    body = Bottleneck(
        linear.size_in, rank, linear.size_out, activation="identity", bias=False, conv=conv
    )
    read = Site(linear.module, "in", axis=axis, repeats=linear.repeats)
    write = Site(linear.module, axis=axis, repeats=linear.repeats)
    return Bypass(read, (write,), body, scale=scale, rows=linear.rows)


def chosen(host: Host, model: nn.Module, targets: Sequence[str]) -> list[Linear]:
    """The linears of the host that `targets` name, each once, in module order.

    No word covers the convolutions beside which there is no pair of matrices (`_obstacle`).

    Raises: UsageError for a target that names nothing in this base, or such a convolution.
    """
    obstacles = {one.module: _obstacle(model, one) for one in host.linears if one.conv}
    usable = [one for one in host.linears if obstacles.get(one.module) is None]
    picked: list[Linear] = []
    for target in targets:
        found = _matching(usable, target)
        if not found and target in obstacles:
            raise UsageError(f"{target} is {obstacles[target]}, which LoRA cannot take")
        if not found:
            roles = (*dict.fromkeys(one.role for one in usable), *GROUPS)
            modules = [one.module for one in usable]
            near = "." in target and get_close_matches(target, modules, n=1, cutoff=0.9)
            hint = closest(target, near or roles)
            raise UsageError(f'no linear "{target}" in a {host.family} base{hint}')
        picked += found
    ids = {id(one) for one in picked}
    return [one for one in usable if id(one) in ids]


def _matching(linears: Sequence[Linear], target: str) -> list[Linear]:
    by_module = [one for one in linears if one.module == target]
    if by_module:
        return _whole(by_module)
    match target:
        case "all":
            return _whole(linears)
        case "linear" | "conv":
            return _whole([one for one in linears if one.conv == (target == "conv")])
        case _ if target.startswith(SELF):
            return [one for one in linears if one.role == target.removeprefix(SELF)]
    exact = [one for one in linears if one.role == target]
    alike = [one for one in linears if one.role.rpartition(".")[2] == target]
    if target == FUSED and not alike:
        return [one for part in FUSED for one in _matching(linears, part)]
    return alike or exact


def _whole(linears: Sequence[Linear]) -> list[Linear]:
    """Each module once: as a whole where the host lists it so, else all slices of its rows."""
    whole = {one.module for one in linears if one.rows is None}
    return [one for one in linears if one.rows is None or one.module not in whole]


def _obstacle(model: nn.Module, linear: Linear) -> str | None:
    """What kind of convolution this is, if not one beside which `bypass_beside` can stand."""
    conv = cast(nn.Conv2d, model.get_submodule(linear.module))
    if isinstance(conv, _ConvTransposeNd):
        return "a transposed convolution"
    if conv.groups != 1:
        return "a grouped convolution"
    return None if conv.padding_mode == "zeros" else f"a convolution padded by {conv.padding_mode}"
