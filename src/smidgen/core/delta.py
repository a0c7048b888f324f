"""Deltas: all edits of one fine-tune as one module; attached to a base, copied, saved and loaded.

A delta is the only thing that is trained. Its state dict is what its file holds.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.core.attachment import Attachment, HasDenoiser, attach, network_of
from smidgen.core.edits import Edit, Table, edit_from_spec, plant
from smidgen.core.file import Provenance, read_file, read_header, write_file
from smidgen.core.fingerprint import fingerprints_match
from smidgen.core.weights import check_finite, check_shapes, checked, damaged
from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, fit

__all__ = ["Attachment", "Delta", "Provenance", "read_header"]


class Delta(nn.Module):
    """Named edits and their provenance. At a site that edits share they act in this order; but
    tokens are added before all else and dropped behind it.

    A name is dotted ("blocks.3.attn.qkv.bias"), no path within another's and, followed by the name
    of a tensor of the edit, its key in the state dict and in the file.
    """

    def __init__(self, edits: Mapping[str, Edit], provenance: Provenance) -> None:
        super().__init__()
        self.edits: Mapping[str, Edit] = dict(edits)
        self.provenance = provenance
        for name, edit in edits.items():
            plant(self, name, edit)

    def attach(
        self, model: nn.Module | HasDenoiser, strength: float = 1.0, *, component: str = ""
    ) -> "Attachment":
        """Let the edits act in `model` (or its `.denoiser`) until the attachment is detached, which
        the end of a `with` does. Neither weights nor `requires_grad` of the base change. At another
        strength than 1 what acts is a copy (`arithmetic.scaled`): 0 is the base. Those of another
        `component` of the base than the denoiser, one of `components`, act in the `model` that is
        that component.

        The first forward that is not compiled verifies that every site was reached, and raises
        SmidgenError if not. Attach after moving the model and before compiling it; to change the
        values of a compiled model use `copy_`.

        Raises: SmidgenError if the model is compiled, lacks a module or parameter or has other
            sizes, if this delta is attached to it already, or if another attached delta replaces
            the same table or parameter; at another strength than 1, as `scaled`.
        """
        if strength == 1:
            return attach(self, model, component)
        from smidgen.core.arithmetic import base_rows_of, scaled  # which makes deltas

        copy = scaled(self, strength, base_rows_of(self, network_of(model)))
        return attach(copy, model, component)

    @property
    def components(self) -> tuple[str, ...]:
        """The components of the base besides the denoiser in which edits act."""
        return tuple(dict.fromkeys(e.component for e in self.edits.values() if e.component))

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
            if mine | {"origin": None} != theirs | {"origin": None}:
                raise SmidgenError(
                    f'deltas differ at edit "{mine["name"]}": attach the other instead'
                )
        if len(self.edits) != len(other.edits):
            counts = f"{len(self.edits)} edits, the other {len(other.edits)}"
            raise SmidgenError(f"this delta has {counts}: attach the other instead")
        values = other.state_dict()
        for name, parameter in self.named_parameters():
            parameter.copy_(values[name])
        for mine, theirs in zip(self.edits.values(), other.edits.values(), strict=True):
            if isinstance(mine, Table) and isinstance(theirs, Table):
                mine.origin = theirs.origin
        self.provenance = other.provenance
        return self

    def clone(self) -> "Delta":
        """An equal delta with its own tensors, attached to nothing."""
        values = {name: value.clone() for name, value in self.state_dict().items()}
        other = _empty(self.specs(), self.provenance)
        other.load_state_dict(values, assign=True)
        return other

    def check_base(self, fingerprint: str, name: str) -> None:
        """Raises: SmidgenError if the base with this fingerprint and name is not this delta's."""
        if not fingerprints_match(self.provenance.fingerprint, fingerprint):
            raise SmidgenError(
                f'the delta was made for base "{self.provenance.base}" and the weights of base '
                f'"{name}" are others; give the base that it was made for'
            )

    def check_component(self, component: str, fingerprint: str) -> None:
        """Raises: SmidgenError if the component with this fingerprint of its weights is not the one
        in which this delta's edits act.
        """
        if not fingerprints_match(self.provenance.components[component], fingerprint):
            raise SmidgenError(
                f'the delta was made for base "{self.provenance.base}" and the weights of this '
                f"base's {component} are others; give the base that it was made for"
            )

    def save(self, path: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write the delta, its values as `dtype` (None: as they are), as a whole or not at all.
        Equal deltas give equal bytes.

        Raises: SmidgenError if the file cannot be written, or a value is not finite, as one beyond
            the range of `dtype`; an older file there then stays.
        """
        tensors = {
            name: value.to("cpu", dtype).contiguous() for name, value in self.state_dict().items()
        }
        check_finite(tensors, f"cannot write {path}", "train anew, or save in another precision")
        header = asdict(self.provenance)
        if not header["components"]:
            del header["components"]
        write_file(path, tensors, header | {"edits": self.specs()})

    @classmethod
    def load(cls, path: Path | str) -> "Delta":
        """The delta in a file, on the CPU, in the precision in which it was saved (8-bit numbers in
        float32).

        Raises: SmidgenError if there is no such file or it is damaged, not a delta, or too new, or
            has numbers that are not finite.
        """
        header, tensors = read_file(path)
        provenance = fit(header, Provenance)
        num_classes = len(provenance.classes)
        try:
            empty = _empty(header["edits"], provenance)
        except Unreadable as error:
            raise damaged(path, f"its header: {error.reason}") from error
        for component in empty.components:
            if component not in provenance.components:
                raise damaged(path, f'it has edits in "{component}" and no fingerprint of it')
        for edit in empty.edits.values():
            rows = len(edit.rows) - 1 if isinstance(edit, Table) else num_classes
            if num_classes and rows != num_classes:
                raise damaged(path, f"its table has {rows} classes, named {num_classes}")
        shapes = {name: tensor.shape for name, tensor in empty.state_dict().items()}
        check_shapes(shapes, tensors, path, "header")
        empty.load_state_dict(checked(tensors, path), assign=True)
        return empty


def _empty(specs: list[dict[str, Any]], provenance: Provenance) -> Delta:
    """A delta of these specs on the meta device. Raises: SmidgenError, Unreadable."""
    edits: dict[str, Edit] = {}
    for spec in specs:
        with torch.device("meta"):
            edit, name = edit_from_spec(spec), spec.get("name", "")
        if name in edits or edit.spec()["shapes"] != spec["shapes"]:
            what = "is there twice" if name in edits else f"has other shapes than its {edit.kind}"
            raise Unreadable(f'"{name}" {what}')
        edits[name] = edit
    try:
        return Delta(edits, provenance)
    except (KeyError, ValueError) as error:  # an empty name, or one within another's
        raise Unreadable(f"its edits cannot go by their names: {error}") from error
