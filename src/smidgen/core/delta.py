"""Deltas: all edits of one fine-tune as one module; attached to a base, copied, saved and loaded.

A delta is the only thing that is trained. Its state dict is what its file holds.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from smidgen.core.edits import Edit, Removable, edit_from_spec, plant
from smidgen.core.file import damaged, read_file, read_header, write_file
from smidgen.core.fingerprint import fingerprints_match
from smidgen.core.sites import Function, Site, bind, check_attachable, compiled_module, misfit
from smidgen.errors import SmidgenError

__all__ = ["Attachment", "Delta", "Provenance", "read_header"]


@runtime_checkable
class HasDenoiser(Protocol):
    """Anything that carries the network that a delta attaches to, such as a base."""

    @property
    def denoiser(self) -> nn.Module: ...


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a delta comes from: all plain JSON.

    `base` is a name for people, `fingerprint` tells whether other weights are the same base.
    `classes` names the rows of the label table, but for the null row. `training` is free: data,
    steps, seed, learning rate, versions, date.
    """

    method: str
    config: dict[str, Any]
    host: str
    base: str
    fingerprint: str
    classes: tuple[str, ...]
    training: dict[str, Any]


class Delta(nn.Module):
    """Named edits and their provenance. At a site that edits share they act in this order.

    A name is dotted ("blocks.3.attn.qkv.bias"), no path within another's and, followed by the name
    of a tensor of the edit, its key in the state dict and in the file.
    """

    def __init__(self, edits: Mapping[str, Edit], provenance: Provenance) -> None:
        super().__init__()
        self.edits: Mapping[str, Edit] = dict(edits)
        self.provenance = provenance
        for name, edit in edits.items():
            plant(self, name, edit)

    def attach(self, model: nn.Module | HasDenoiser) -> "Attachment":
        """Let the edits act in `model` (or its `.denoiser`) until the attachment is detached, which
        the end of a `with` does. Neither weights nor `requires_grad` of the base change.

        The first forward that is not compiled verifies that every site was reached, and raises
        SmidgenError if not. Attach after moving the model and before compiling it; to change the
        values of a compiled model use `copy_`.

        Raises: SmidgenError if the model is compiled, lacks a module or parameter or has other
            sizes, if this delta is attached to it already, or if another attached delta replaces
            the same table or parameter.
        """
        root = model if isinstance(model, nn.Module) else getattr(model, "denoiser", None)
        if not isinstance(root, nn.Module):
            given = type(model).__name__
            raise SmidgenError(f"a delta attaches to a network (pipe.unet, ...), not to a {given}")
        check_attachable(root)
        self._check_claims(root)
        for edit in self.edits.values():
            edit.check(root)
        with ExitStack() as undo:
            for handle in _verify_first_forward(root, self.edits):
                undo.callback(handle.remove)
            for edit in self.edits.values():
                for handle in edit.attach(root):
                    undo.callback(handle.remove)
            return Attachment(root, self, undo.pop_all())

    def _check_claims(self, root: nn.Module) -> None:
        """Tables and weights replace, so that two for one thing could only hide each other."""
        others = [attachment.delta for attachment in _attachments(root)]
        if any(other is self for other in others):
            raise SmidgenError("this delta is attached to the model already; detach it first")
        taken: dict[str, str] = {}
        for name, edit in (entry for delta in (*others, self) for entry in delta.edits.items()):
            for claim in edit.claims():
                if claim in taken:
                    raise SmidgenError(
                        f'"{taken[claim]}" and "{name}" both replace {claim}; '
                        "detach the other delta first"
                    )
                taken[claim] = name

    def num_parameters(self) -> int:
        """The number of trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def specs(self) -> list[dict[str, Any]]:
        """All but the values, as JSON: the name and the spec of each edit, in order."""
        return [{"name": name} | edit.spec() for name, edit in self.edits.items()]

    @torch.no_grad()
    def copy_(self, other: "Delta") -> "Delta":
        """Take over the values and the provenance of `other`, in place, attached or not.

        Raises: SmidgenError if the two are not made of the same edits.
        """
        for mine, theirs in zip(self.specs(), other.specs(), strict=False):
            if mine != theirs:
                raise SmidgenError(
                    f'deltas differ at edit "{mine["name"]}": attach the other instead'
                )
        if len(self.edits) != len(other.edits):
            counts = f"{len(self.edits)} edits, the other {len(other.edits)}"
            raise SmidgenError(f"this delta has {counts}: attach the other instead")
        values = other.state_dict()
        for name, parameter in self.named_parameters():
            parameter.copy_(values[name])
        self.provenance = other.provenance
        return self

    def clone(self) -> "Delta":
        """An equal delta with its own tensors, attached to nothing."""
        values = {name: value.clone() for name, value in self.state_dict().items()}
        return _assembled(self.specs(), values, self.provenance)

    def check_base(self, fingerprint: str, name: str) -> None:
        """Raises: SmidgenError if the base with this fingerprint and name is not this delta's."""
        if not fingerprints_match(self.provenance.fingerprint, fingerprint):
            raise SmidgenError(
                f'the delta was made for base "{self.provenance.base}" and the weights of base '
                f'"{name}" are others; give the base that it was made for'
            )

    def save(self, path: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write the delta, its values as `dtype` (None: as they are), as a whole or not at all.
        Equal deltas give equal bytes.

        Raises: SmidgenError if the file cannot be written; an older one there then stays.
        """
        tensors = {
            name: value.to("cpu", dtype).contiguous() for name, value in self.state_dict().items()
        }
        write_file(path, tensors, asdict(self.provenance) | {"edits": self.specs()})

    @classmethod
    def load(cls, path: Path | str) -> "Delta":
        """The delta in a file, on the CPU, in the precision in which it was saved.

        Raises: SmidgenError if there is no such file or it is damaged, not a delta, or too new.
        """
        header, tensors = read_file(path)
        try:
            known = {field.name: header[field.name] for field in fields(Provenance)}
            known["classes"] = tuple(known["classes"])
            return _assembled(header["edits"], tensors, Provenance(**known))
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise damaged(path, "its header and its tensors do not fit") from error


class Attachment:
    """A delta in a network. `detach()`, or the end of a `with`, leaves nothing of it there."""

    def __init__(self, root: nn.Module, delta: Delta, undo: ExitStack) -> None:
        self.delta = delta
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


def _assembled(
    specs: list[dict[str, Any]], values: Mapping[str, Tensor], provenance: Provenance
) -> Delta:
    """A delta of these specs with `values` themselves as its tensors."""
    with torch.device("meta"):
        delta = Delta({spec["name"]: edit_from_spec(spec) for spec in specs}, provenance)
    delta.load_state_dict(values, assign=True)
    return delta


def _verify_first_forward(root: nn.Module, edits: Mapping[str, Edit]) -> Iterator[Removable]:
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
                "switch off what skips that module (fused attention, skipped layers)"
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
            if size is not None and value.shape[site.axis] != size:
                found = value.shape[site.axis]
                raise misfit(f"{site} has {found} channels, the delta expects {size}")
        return value

    return function
