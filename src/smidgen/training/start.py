"""A new run that begins from a delta that was trained before, or from another program's LoRA."""

from __future__ import annotations

import dataclasses

import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Table
from smidgen.errors import UsageError
from smidgen.files.standing import changed


def begun_with(fresh: Delta, other: Delta) -> Delta:
    """A delta with the values of `other` and what is said of `fresh`, which was built for a run:
    its classes, and of its label table the rows of classes that `other` does not know.

    Raises: UsageError if `other` is of another method, or of the same with other options.
    """
    theirs, ours = other.provenance, fresh.provenance
    if theirs.method != ours.method:
        raise UsageError(
            f"init is a delta of {theirs.method} and the method is {ours.method}; give --method "
            f"{theirs.method}, or begin without init"
        )
    if theirs.config and (options := changed(theirs.config, ours.config)):
        raise UsageError(
            f"init was trained with other options ({', '.join(options)}); give the same ones"
        )
    edits: dict[str, Edit] = dict(other.clone().edits)
    for name, edit in fresh.edits.items():
        if isinstance(edit, Table):
            known = edits.get(name)
            if isinstance(known, Table):
                _take_rows(edit, ours.classes, known, theirs.classes)
            edits[name] = edit
    provenance = dataclasses.replace(ours, config=theirs.config or ours.config)
    return Delta(edits, provenance).to(next(fresh.parameters()).device)


@torch.no_grad()
def _take_rows(
    table: Table, classes: tuple[str, ...], known: Table, known_classes: tuple[str, ...]
) -> None:
    """The rows of equal class names, and the null row, which is the last of both."""
    for row, name in enumerate(classes):
        if name in known_classes:
            table.rows[row] = known.rows[known_classes.index(name)]
    table.rows[-1] = known.rows[-1]
