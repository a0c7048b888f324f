"""Attaching: the hooks of many edits in one network, what they are checked for, and their removal.

What is attached is a delta (delta.py) or a bank of them (bank.py).
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from smidgen.core.edit import Acting, Removable
from smidgen.core.sites import Function, Site, bind, check_attachable, compiled_module, misfit
from smidgen.errors import SmidgenError


@runtime_checkable
class HasDenoiser(Protocol):
    """Anything that carries the network that a delta attaches to, such as a base."""

    @property
    def denoiser(self) -> nn.Module: ...


@runtime_checkable
class HasEdits(Protocol):
    """What can be attached: named edits, in the order in which they act."""

    @property
    def edits(self) -> Mapping[str, Acting]: ...


class Attachment:
    """A delta or a bank in a network. `detach()`, or the end of a `with`, leaves nothing there."""

    def __init__(
        self, root: nn.Module, delta: HasEdits, edits: Mapping[str, Acting], undo: ExitStack
    ) -> None:
        self.delta = delta
        self.edits = edits
        self._root = root
        self._undo = undo
        _forget_compiled()
        root.__dict__[_ATTACHED] = (*_attachments(root), self)

    def __enter__(self) -> "Attachment":
        return self

    def __exit__(self, *exception: object) -> None:
        self.detach()

    def detach(self) -> None:
        """Remove the edits; a second time does nothing."""
        self._undo.close()
        for edit in self.edits.values():
            edit.forget()
        others = tuple(other for other in _attachments(self._root) if other is not self)
        self._root.__dict__[_ATTACHED] = others
        if not others:
            del self._root.__dict__[_ATTACHED]
        _forget_compiled()


_ATTACHED = "_smidgen_attachments"  # an attribute of a network, there while deltas are attached


def _attachments(root: nn.Module) -> tuple[Attachment, ...]:
    return root.__dict__.get(_ATTACHED, ())


def _forget_compiled() -> None:
    """Compiled code does not notice hooks that come or go: compile it anew at its next call."""
    if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes a second
        torch.compiler.reset()


def attach(delta: HasEdits, model: nn.Module | HasDenoiser, component: str = "") -> Attachment:
    """Let the edits of `delta` in this component act in `model` (or its `.denoiser`) until they are
    detached.

    Raises: SmidgenError as `Delta.attach`.
    """
    root = network_of(model)
    edits = {name: edit for name, edit in delta.edits.items() if edit.component == component}
    check_attachable(root)
    _check_claims(root, delta, edits)
    for edit in edits.values():
        edit.check(root)
    with ExitStack() as undo:
        for handle in _verify_first_forward(root, edits):
            undo.callback(handle.remove)
        for edit in sorted(edits.values(), key=lambda edit: edit.encloses):
            for handle in edit.attach(root):
                undo.callback(handle.remove)
        for handle in _forget_at_the_end(root, edits):
            undo.callback(handle.remove)
        return Attachment(root, delta, edits, undo.pop_all())


def network_of(model: nn.Module | HasDenoiser) -> nn.Module:
    """`model` itself or its `.denoiser`. Raises: SmidgenError if neither is a network."""
    root = model if isinstance(model, nn.Module) else getattr(model, "denoiser", None)
    if not isinstance(root, nn.Module):
        given = type(model).__name__
        raise SmidgenError(f"a delta attaches to a network (pipe.unet, ...), not to a {given}")
    return root


def _check_claims(root: nn.Module, delta: HasEdits, edits: Mapping[str, Acting]) -> None:
    """Tables and weights replace, so that two for one thing could only hide each other."""
    others = _attachments(root)
    if any(other.delta is delta for other in others):
        raise SmidgenError("this delta is attached to the model already; detach it first")
    taken: dict[str, str] = {}
    for name, edit in (
        entry for each in (*(other.edits for other in others), edits) for entry in each.items()
    ):
        for claim in edit.claims():
            if claim in taken:
                raise SmidgenError(
                    f'"{taken[claim]}" and "{name}" both replace {claim}; detach the other delta '
                    "first, or choose between them for each image with a Bank"
                )
            taken[claim] = name


def _forget_at_the_end(root: nn.Module, edits: Mapping[str, Acting]) -> Iterator[Removable]:
    """What edits keep between their sites must not outlive a call that ran past the last one or
    broke off.
    """
    keeping = [edit for edit in edits.values() if len(edit.sites) > 1]

    def forget(module: nn.Module, arguments: Any, output: Any) -> None:
        for edit in keeping:
            edit.forget()

    if keeping:
        yield root.register_forward_hook(forget, always_call=True)


def _verify_first_forward(root: nn.Module, edits: Mapping[str, Acting]) -> Iterator[Removable]:
    """Hooks that see to it that the first call of `root` reaches every site with the channels that
    the edits expect; then they are gone, so that code compiled later does not hold them.

    A call through compiled code proves nothing and is not judged.
    """
    sizes = [(site, edit.sizes().get(site)) for edit in edits.values() for site in edit.sites]
    unreached = {site: name for name, edit in edits.items() for site in edit.sites}
    handles: list[Removable] = []

    def finish(module: nn.Module, arguments: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if unreached and compiled_module(root) is None:
            site, name = next(iter(unreached.items()))
            raise SmidgenError(
                f'the model ran past {len(unreached)} sites, first {site} of edit "{name}"; '
                "switch off what skips that module: undo fuse_qkv_projections() with "
                "unfuse_qkv_projections(), give no skip_layers, drop layer-skipping guidance; a "
                "module that never runs is no place for an edit"
            )
        for handle in handles:
            handle.remove()

    for site, size in dict.fromkeys(sizes):
        handles.append(bind(root, site, _reach(unreached, site, size)))
        yield handles[-1]
    handles.append(root.register_forward_hook(finish))
    yield handles[-1]


def _reach(unreached: dict[Site, str], site: Site, size: int | None) -> Function:
    def function(value: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            unreached.pop(site, None)
            if not -value.ndim <= site.axis < value.ndim:
                raise misfit(f"{site} carries {tuple(value.shape)}, which has no axis {site.axis}")
            if size is not None and value.shape[site.axis] != size:
                found = value.shape[site.axis]
                raise misfit(f"{site} has {found} channels, the delta expects {size}")
        return value

    return function
