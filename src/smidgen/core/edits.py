"""Edits: small modules that hold only their own new weights and act at one or two sites.

C is the channels at a site, K the classes of a fine-tune. An edit never holds a tensor of the base;
what all edits of a fine-tune do together is in delta.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from smidgen.core.sites import Function, Site, bind, misfit, module_at, num_channels
from smidgen.errors import SmidgenError


class Removable(Protocol):
    """What attaching leaves in the network: a hook or a swapped parameter."""

    def remove(self) -> None: ...


class Edit(nn.Module, ABC):
    """One change of a network. A kind says where it acts (`sites`), what it does there (`actions`)
    and how it is rebuilt from its `spec`; the rest follows.

    Weights may be kept in another precision or on another device than the activations: actions
    convert them.
    """

    kind: ClassVar[str]
    sites: tuple[Site, ...]

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        """The functions, each with the site where it replaces the tensor; `forward` by default."""
        return tuple((site, self.forward) for site in self.sites)

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Edit":
        """An edit of these sites and sizes; its values are to be filled in."""

    def spec(self) -> dict[str, Any]:
        """Plain JSON that says all but the values: kind, sites and shapes."""
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors().items()}
        sites = [site.spec() for site in self.sites]
        return {"kind": self.kind, "sites": sites, "shapes": shapes}

    def tensors(self) -> dict[str, nn.Parameter]:
        """The trained tensors of this edit by name."""
        return dict(self.named_parameters())

    def sizes(self) -> dict[Site, int]:
        """The channels that the edit expects at its sites, where it has an expectation."""
        return {}

    def claims(self) -> frozenset[str]:
        """The parameters of the base that this edit replaces, so that no second edit may."""
        return frozenset()

    def check(self, root: nn.Module) -> None:
        """Raises: SmidgenError if a module is missing or has another number of channels."""
        for site in self.sites:
            found = num_channels(module_at(root, site.module), site.end)
            expected = self.sizes().get(site)
            if found is not None and expected is not None and found != expected:
                raise misfit(f"{site} has {found} channels, the delta expects {expected}")

    def attach(self, root: nn.Module) -> Iterator[Removable]:
        """Put the edit into `root` piece by piece, yielding what takes each piece out again."""
        for site, function in self.actions():
            yield bind(root, site, function)


@final
class Shift(Edit):
    """y + offset at a site with C channels (BitFit, arXiv 2106.10199); offset starts at 0."""

    kind = "shift"

    def __init__(self, site: Site, size: int) -> None:
        super().__init__()
        self.sites = (site,)
        self.offset = nn.Parameter(torch.zeros(size))

    def forward(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return y + _along(self.offset, y, self.sites[0].axis)

    def sizes(self) -> dict[Site, int]:
        return {self.sites[0]: self.offset.shape[0]}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Shift":
        return cls(Site(**spec["sites"][0]), spec["shapes"]["offset"][0])


@final
class Scale(Edit):
    """y * gain at a site with C channels (DiffFit's gamma, arXiv 2304.06648); gain starts at 1."""

    kind = "scale"

    def __init__(self, site: Site, size: int) -> None:
        super().__init__()
        self.sites = (site,)
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return y * _along(self.gain, y, self.sites[0].axis)

    def sizes(self) -> dict[Site, int]:
        return {self.sites[0]: self.gain.shape[0]}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Scale":
        return cls(Site(**spec["sites"][0]), spec["shapes"]["gain"][0])


@final
class Table(Edit):
    """Another embedding table: row `id` instead of what the base returns for it.

    `rows` has a row for each new class and, last, one for the null label. The base still looks up
    its own table of `num_old_rows` rows, so ids are clamped to it on the way in; they are kept from
    `site_in` to `site_out` and no longer.
    """

    kind = "table"

    def __init__(
        self, site_in: Site, site_out: Site, num_old_rows: int, rows: Float[Tensor, "rows C"]
    ) -> None:
        super().__init__()
        self.sites = (site_in, site_out)
        self.num_old_rows = num_old_rows
        self.rows = nn.Parameter(rows.detach().clone())
        self.ids: Tensor | None = None

    def read(self, ids: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        self.ids = ids
        return ids.clamp(max=self.num_old_rows - 1)

    def write(self, output: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        ids, self.ids = self.ids, None
        if ids is None:
            raise SmidgenError(f"{self.sites[1]} came without {self.sites[0]}: the ids are unknown")
        return functional.embedding(ids, self.rows.to(ids.device)).to(output)

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        return (self.sites[0], self.read), (self.sites[1], self.write)

    def sizes(self) -> dict[Site, int]:
        return {self.sites[1]: self.rows.shape[1]}

    def claims(self) -> frozenset[str]:
        return frozenset({f"{self.sites[1].module}.weight"})

    def check(self, root: nn.Module) -> None:
        super().check(root)
        table = module_at(root, self.sites[1].module)
        if isinstance(table, nn.Embedding) and table.num_embeddings != self.num_old_rows:
            rows = f"{table.num_embeddings} rows where the delta expects {self.num_old_rows}"
            raise misfit(f"{self.sites[1].module} has {rows}")

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"num_old_rows": self.num_old_rows}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Table":
        site_in, site_out = (Site(**site) for site in spec["sites"])
        return cls(site_in, site_out, spec["num_old_rows"], torch.empty(spec["shapes"]["rows"]))


@final
class Weight(Edit):
    """A module runs with a trained copy of some of its parameters.

    While attached the copies stand where the base's own parameters were; detaching puts back the
    very same objects (docs/decisions/0002-weight-swaps-parameters.md). `parameters` have the names
    that the module gives them, dots allowed; the module may be the whole network ("").
    """

    kind = "weight"
    sites = ()

    def __init__(self, module: str, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.target = module
        for name, tensor in parameters.items():
            plant(self, name, nn.Parameter(tensor.detach().clone()))

    def claims(self) -> frozenset[str]:
        return frozenset(self.replaced())

    def replaced(self) -> dict[str, nn.Parameter]:
        """The trained copies by the names that the whole network gives the originals."""
        tensors = self.tensors().items()
        return {f"{self.target}.{name}".removeprefix("."): copy for name, copy in tensors}

    def check(self, root: nn.Module) -> None:
        for name, copy in self.replaced().items():
            try:
                own = root.get_parameter(name)
            except AttributeError:
                raise misfit(f'{type(root).__name__} has no parameter "{name}"') from None
            if copy.shape != own.shape:
                shapes = f"shape {tuple(own.shape)}, in the delta {tuple(copy.shape)}"
                raise misfit(f"{name} has {shapes}")
            if (copy.dtype, copy.device) != (own.dtype, own.device):
                raise SmidgenError(
                    f"{name} is {copy.dtype} on {copy.device} in the delta, {own.dtype} on "
                    f'{own.device} in the base; first call delta.to("{own.device}", {own.dtype})'
                )

    def attach(self, root: nn.Module) -> Iterator[Removable]:
        for name, copy in self.replaced().items():
            path, _, leaf = name.rpartition(".")
            owner = root.get_submodule(path)
            swap = _Swap(owner, leaf, owner.get_parameter(leaf))
            owner._parameters[leaf] = copy
            yield swap

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"module": self.target}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Weight":
        empty = {name: torch.empty(shape) for name, shape in spec["shapes"].items()}
        return cls(spec["module"], empty)


EDITS: Mapping[str, type[Edit]] = {edit.kind: edit for edit in (Shift, Scale, Table, Weight)}


def edit_from_spec(spec: Mapping[str, Any]) -> Edit:
    """The edit that `Edit.spec` described; its values are to be filled in.

    Raises: SmidgenError for a kind that is unknown here.
    """
    if spec["kind"] not in EDITS:
        raise SmidgenError(
            f'edits of kind "{spec["kind"]}" are unknown to this smidgen, which has: '
            f"{', '.join(EDITS)}; upgrade smidgen"
        )
    return EDITS[spec["kind"]].from_spec(spec)


def plant(parent: nn.Module, path: str, leaf: nn.Module | nn.Parameter) -> None:
    """Register `leaf` at a dotted path of new plain modules, so that its name in the state dict of
    `parent` is the path.

    Raises: ValueError if the path, or a part of it from the left, is taken.
    """
    *branches, last = path.split(".")
    for name in branches:
        if not hasattr(parent, name):
            parent.add_module(name, nn.Module())
        parent = getattr(parent, name)
        if type(parent) is not nn.Module:
            raise ValueError(f'"{path}" lies in "{name}", which is taken: choose another name')
    if hasattr(parent, last):
        raise ValueError(f'"{path}" is taken: choose another name')
    if isinstance(leaf, nn.Module):
        parent.add_module(last, leaf)
    else:
        parent.register_parameter(last, leaf)


@dataclass(frozen=True)
class _Swap:
    """The base's own parameter, to be put back."""

    owner: nn.Module
    name: str
    parameter: nn.Parameter

    def remove(self) -> None:
        self.owner._parameters[self.name] = self.parameter


def _along(
    vector: Float[Tensor, " C"], tensor: Float[Tensor, "..."], axis: int
) -> Float[Tensor, "C ..."]:
    """`vector` in the precision of `tensor` and on its device, so that it lies along its `axis`."""
    trailing = tensor.ndim - 1 - axis % tensor.ndim
    return vector.to(tensor).view(-1, *(1,) * trailing)
