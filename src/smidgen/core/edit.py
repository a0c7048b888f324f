"""What every kind of edit is: a small module that holds only its own new weights and acts at sites.

C is the channels at a site, B the leading size of a tensor there. The kinds are in edits.py,
bypass.py and tokens.py; what all edits of a fine-tune do together is in delta.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Protocol

from jaxtyping import Float
from msgspec import Meta, Struct
from torch import Tensor, nn

from smidgen.core.sites import (
    Function,
    Name,
    Site,
    SiteSpec,
    bind,
    misfit,
    module_at,
    num_channels,
)

Size = Annotated[int, Meta(ge=0, le=2**31)]  # along one axis
Shape = Annotated[tuple[Size, ...], Meta(max_length=8)]


class Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The schema of `Edit.spec` in a file, with the name of the edit; kinds add to it."""

    name: Name = ""
    component: Name = ""
    kind: Name
    sites: tuple[SiteSpec, ...]
    shapes: dict[Name, Shape]


class Removable(Protocol):
    """What attaching leaves in the network: a hook or a swapped parameter."""

    def remove(self) -> None: ...


class Acting(nn.Module, ABC):
    """What acts in a network: it says where (`sites`) and what it does there (`actions`).

    The network is the component of a base that `component` names, such as a text encoder; "" is the
    denoiser. Weights may be kept in another precision or on another device than the activations:
    actions convert them.
    """

    sites: tuple[Site, ...]
    component: str = ""
    encloses: bool = False  # before all others at its inputs, behind them at its outputs

    def actions(self) -> tuple[tuple[Site, Function], ...]:
        """The functions, each with the site where it replaces the tensor; `forward` by default."""
        return tuple((site, self.forward) for site in self.sites)

    def sizes(self) -> dict[Site, int]:
        """The channels that are expected at the sites, where there is an expectation."""
        return {}

    def claims(self) -> frozenset[str]:
        """The parameters of the base that this replaces, so that nothing else may."""
        return frozenset()

    def forget(self) -> None:
        """Drop what is kept from one site to another; called when the network returns."""

    def check(self, root: nn.Module) -> None:
        """Raises: SmidgenError if a module is missing or has another number of channels."""
        for site in self.sites:
            found = num_channels(module_at(root, site.module), site.end)
            expected = self.sizes().get(site)
            if found is not None and expected is not None and found != expected:
                raise misfit(f"{site} has {found} channels, the delta expects {expected}")

    def attach(self, root: nn.Module) -> Iterator[Removable]:
        """Act in `root` from now on, piece by piece, yielding what takes each piece out again."""
        for site, function in self.actions():
            yield bind(root, site, function, first=self.encloses and site.end == "in")


class Edit(Acting):
    """One change of a network, whose tensors are trained and saved. A kind is rebuilt from its
    `spec`.
    """

    kind: ClassVar[str]
    schema: ClassVar[type[Spec]]

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Any) -> "Edit":
        """An edit of these sites and sizes, `spec` being of the kind's schema; its values are to be
        filled in.

        Raises: LookupError, TypeError, ValueError or RuntimeError if there is no such edit.
        """

    def spec(self) -> dict[str, Any]:
        """Plain JSON that says all but the values: kind, sites and shapes, and the component that
        is not the denoiser.
        """
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors().items()}
        sites = [site.spec() for site in self.sites]
        spec: dict[str, Any] = {"kind": self.kind, "sites": sites, "shapes": shapes}
        return spec | ({"component": self.component} if self.component else {})

    def tensors(self) -> dict[str, nn.Parameter]:
        """The trained tensors of this edit by name."""
        return dict(self.named_parameters())


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


def along(
    vector: Float[Tensor, " C"], tensor: Float[Tensor, "..."], axis: int
) -> Float[Tensor, "C ..."]:
    """`vector` in the precision of `tensor` and on its device, so that it lies along its `axis`."""
    return vector.to(tensor).view(-1, *(1,) * behind(tensor, axis))


def behind(tensor: Float[Tensor, "..."], axis: int) -> int:
    """How many axes of `tensor` come after `axis`."""
    return tensor.ndim - 1 - axis % tensor.ndim
