"""What the modules of a network tell of its sites without a call: its linears, convolutions and
norms. Which of them form a block is the knowledge of each family's host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from smidgen.core.fold import IntoLinear, Target
from smidgen.core.sites import Site
from smidgen.hosts.host import Host, Linear


@dataclass(frozen=True, kw_only=True)
class Role:
    """What a linear is for in the block of this number (None: outside the blocks); `repeats` as in
    a Site.
    """

    name: str = "other"
    block: int | None = None
    repeats: int = 1


@dataclass(kw_only=True)
class Parts:
    """What `read_modules` finds, in the order of the modules; the fields are those of a Host."""

    biases: list[Site] = field(default_factory=list)
    norms: list[Site] = field(default_factory=list)
    bare_norms: list[Site] = field(default_factory=list)
    linears: list[Linear] = field(default_factory=list)
    sizes: dict[Site, int] = field(default_factory=dict)
    folds: dict[Site, Target] = field(default_factory=dict)
    untouched: list[str] = field(default_factory=list)

    def host(self, **others: Any) -> Host:
        """The host of these parts, whose `others` are its further fields, or other than here."""
        found = {k: v if isinstance(v, dict) else tuple(v) for k, v in vars(self).items()}
        return Host(**{**found, **others})


def read_modules(model: nn.Module, roles: Mapping[str, Role]) -> Parts:
    """The sites of every linear, convolution and norm of `model`; `roles` by module name.

    Every other parameter, those of embeddings apart, is untouched.
    """
    parts, reached = Parts(), set()
    for name, module in callable_modules(model):
        found, own = output_of(name, module), _own(module)
        if found is not None or isinstance(module, nn.Embedding):
            reached |= {f"{name}.{key}" for key in own}
        if found is None:
            continue
        (site, size), role = found, roles.get(name, Role())
        site = replace(site, repeats=role.repeats)
        parts.sizes[site] = size
        if "bias" in own:
            parts.biases.append(site)
        if isinstance(module, nn.Linear | _ConvNd):
            parts.linears.append(linear_of(name, module, role))
        else:
            (parts.norms if "weight" in own else parts.bare_norms).append(site)
        if "weight" in own and not isinstance(module, _ConvTransposeNd):
            bias = f"{name}.bias" if "bias" in own else None
            parts.folds[site] = IntoLinear(f"{name}.weight", bias)
    parts.untouched = [name for name, _ in model.named_parameters() if name not in reached]
    return parts


def callable_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of `model` with their names, without those inside an nn.MultiheadAttention: it
    uses the weights of its parts and never calls them.
    """
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if inside and name.startswith(inside):
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside = (*inside, f"{name}.")
        yield name, module


def output_of(name: str, module: nn.Module) -> tuple[Site, int] | None:
    """The output of a linear, a convolution or a norm, with its channels; None for others."""
    match module:
        case nn.Linear():
            return Site(name), module.out_features
        case _ConvNd():
            return Site(name, axis=1), module.out_channels
        case nn.GroupNorm():
            return Site(name, axis=1), module.num_channels
        case _BatchNorm():
            return Site(name, axis=1), module.num_features
    shape = _normalised_shape(module)
    return None if shape is None else (Site(name), shape[-1])


def _normalised_shape(module: nn.Module) -> tuple[int, ...] | None:
    """The last axes that a norm over them normalises, if they are one axis and `module` is a norm:
    PyTorch's, or one of its form, which has an epsilon and nothing but a weight and a bias.
    """
    if not isinstance(module, nn.LayerNorm | nn.RMSNorm):
        parts = {"weight", "bias"}
        if module._modules or set(module._parameters) - parts or not hasattr(module, "eps"):
            return None
    found: Any = getattr(module, "normalized_shape", getattr(module, "dim", None))
    weight = module._parameters.get("weight")
    shape = tuple(found) if isinstance(found, tuple | list) else ()
    if not shape and weight is not None:
        shape = tuple(weight.shape)
    return shape if len(shape) == 1 else None


def linear_of(name: str, module: Any, role: Role) -> Linear:
    """A linear or convolution with its role."""
    conv = isinstance(module, _ConvNd)
    return Linear(
        module=name,
        role=role.name,
        size_in=module.in_channels if conv else module.in_features,
        size_out=module.out_channels if conv else module.out_features,
        conv=conv,
        block=role.block,
        repeats=role.repeats,
    )


def with_rows(
    linears: Iterable[Linear], rows: Mapping[str, tuple[tuple[str, int, int], ...]]
) -> Iterator[Linear]:
    """Every linear and, behind one that does several things, each of them."""
    for linear in linears:
        yield linear
        for role, start, stop in rows.get(linear.module, ()):
            yield replace(linear, role=role, size_out=stop - start, rows=(start, stop))


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the module itself, by their name in it."""
    return {key: value for key, value in module._parameters.items() if value is not None}
