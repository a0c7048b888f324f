"""A new run that begins from a delta that was trained before, or from another program's LoRA."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch

from smidgen.core.delta import Delta
from smidgen.core.edits import Edit, Table, Weight
from smidgen.core.file import Provenance, is_delta, read_header
from smidgen.core.fingerprint import fingerprints_match, shapes_match
from smidgen.core.word import Word
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.reading import sha256_of
from smidgen.files.standing import changed
from smidgen.models.base import Base

START, NO_START = "the start", "fresh"  # of the identity of a run
# where a delta's provenance has it, and the base of what it began from if that was another one
INIT, INIT_BASE = "init", "init_base"
OTHER_BASE_HINT = "or init_other_base to begin from it all the same"


def check_start(init: Path | None, method: str, *, other_base: bool = False) -> None:
    """Raises: UsageError if a run of this method cannot begin from the file, as far as its header
    tells, or it is no delta, with `other_base`; SmidgenError if it is damaged.
    """
    if init is None:
        return
    if not init.exists():
        raise UsageError(f"no such delta to begin from: {init}; give the file of one with init")
    if is_delta(init):
        _check_method(read_header(init)["method"], method)
    elif other_base:
        raise UsageError(
            f"init_other_base is about a delta, and {init} is another program's file, which names "
            "no base; leave it out"
        )


def identity_of_start(init: Path | None, own: Path) -> str | None:
    """A SHA-256 of the file, or of all files of the folder, from which a run begins: of one that is
    gone since as the run's `own` delta says it; None for a fresh delta.
    """
    if init is None:
        return None
    if not init.exists():
        return read_header(own)["training"].get(INIT) if own.is_file() else None
    if init.is_file():
        return sha256_of(init)
    files = sorted(path for path in init.rglob("*") if path.is_file())
    return hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()


def read_start(path: Path, base: Base, *, other_base: bool = False) -> Delta:
    """The delta in a file, with which a run on `base` begins. With `other_base` it may be of
    another one, with other weights of the same names and shapes: an earlier version, say.

    Raises: SmidgenError if it is none, or of another base; UsageError for one that cannot begin on
        this base either way.
    """
    delta = Delta.load(path)
    theirs, ours = delta.provenance.fingerprint, base.fingerprint
    if not other_base:
        try:
            delta.check_base(ours, base.name)
        except SmidgenError as error:
            if can_begin(delta, ours) is not None:
                raise
            raise SmidgenError(f"{error}, {OTHER_BASE_HINT}") from error
    elif not fingerprints_match(theirs, ours) and (why := can_begin(delta, ours)) is not None:
        raise UsageError(f'no run on base "{base.name}" can begin from {path}: {why}')
    return delta


def can_begin(delta: Delta, fingerprint: str) -> str | None:
    """Why no run on another base with this fingerprint can begin from the delta. None if one can:
    the two have weights of the same names and shapes, and nothing in the delta is a copy of some.
    """
    if not shapes_match(delta.provenance.fingerprint, fingerprint):
        return "the bases differ in the shapes of their weights; begin without init"
    if any(isinstance(edit, Weight) for edit in delta.edits.values()):
        return "it holds copies of the other base's weights; begin without init"
    return None


def begun_with(
    fresh: Delta, other: Delta, *, goes_on: bool = False, other_base: bool = False
) -> Delta:
    """A delta with the values of `other` and what is said of `fresh`, which was built for a run:
    its classes, and of its label table the rows of classes that `other` does not know; and, if
    `other` is of another base, of which. A run that `goes_on` has its own last delta as `other`.
    `other_base` is as in `read_start`; here it is about text encoders.

    Raises: UsageError if `other` is of another method, or of the same with other options, text
        encoders or another new word; SmidgenError if the weights of these encoders were others.
    """
    theirs, ours = other.provenance, fresh.provenance
    _check_method(theirs.method, ours.method)
    if theirs.config and (options := changed(theirs.config, ours.config)):
        raise UsageError(
            f"init was trained with other options ({', '.join(options)}); give the same ones"
        )
    _check_encoders(fresh, other)
    for component in other.components:
        wanted = ours.components[component]
        if not shapes_match(theirs.components[component], wanted):
            raise UsageError(
                f"the bases differ in the shapes of their {component}; begin without init"
            )
        try:
            other.check_component(component, wanted)
        except SmidgenError as error:
            if not other_base:
                raise SmidgenError(f"{error}, {OTHER_BASE_HINT}") from error
    _check_table(fresh, other)
    edits: dict[str, Edit] = dict(other.clone().edits)
    for name, edit in fresh.edits.items():
        if isinstance(edit, Table):
            known = edits.get(name)
            if isinstance(known, Table):
                _take_rows(edit, ours.classes, known, theirs.classes)
            edits[name] = edit
    training = ours.training
    origin = theirs.training.get(INIT_BASE) if goes_on else _other_base(theirs, ours)
    if origin is not None:
        training = {**training, INIT_BASE: origin}
    config = theirs.config or ours.config
    provenance = dataclasses.replace(ours, config=config, training=training)
    return Delta(edits, provenance).to(next(fresh.parameters()).device)


def _other_base(theirs: Provenance, ours: Provenance) -> dict[str, str] | None:
    """The base of what is begun from, if its denoiser or a text encoder that the delta acts in is
    not that of the run.
    """
    pairs = [(theirs.fingerprint, ours.fingerprint)]
    pairs += [(one, ours.components[name]) for name, one in theirs.components.items()]
    if all(fingerprints_match(*pair) for pair in pairs):
        return None
    return {"name": theirs.base, "fingerprint": theirs.fingerprint}


def _check_method(theirs: str, ours: str) -> None:
    if theirs != ours:
        raise UsageError(
            f"init is a delta of {theirs} and the method is {ours}; give the method {theirs}, or "
            "begin without init"
        )


def _check_encoders(fresh: Delta, other: Delta) -> None:
    """Raises: UsageError if the two differ in the text encoders that they train, or in the word."""
    if set(other.components) != set(fresh.components):
        known, wanted = (", ".join(one.components) or "none" for one in (other, fresh))
        raise UsageError(
            f"init was trained in other text encoders ({known} -> {wanted}); give the same "
            "train_text_encoder"
        )
    for name, edit in fresh.edits.items():
        known = other.edits.get(name)
        if isinstance(edit, Word) and isinstance(known, Word) and edit.token != known.token:
            raise UsageError(
                f'init has the new word "{known.token}" and token is "{edit.token}"; give the same'
            )
        if isinstance(edit, Word) and isinstance(known, Word) and len(edit.rows) != len(known.rows):
            raise UsageError(
                f"the word of init has {len(known.rows)} vectors; give num_vectors the same"
            )


def _check_table(fresh: Delta, other: Delta) -> None:
    """Raises: UsageError if `other` has a label table and `fresh` keeps the base's."""
    for name, edit in other.edits.items():
        if isinstance(edit, Table) and name not in fresh.edits:
            raise UsageError(
                "init has a label table of its own and train_labels keeps that of the base; train "
                "labels too, or give an init without"
            )


@torch.no_grad()
def _take_rows(
    table: Table, classes: tuple[str, ...], known: Table, known_classes: tuple[str, ...]
) -> None:
    """The rows of equal class names, and the null row, which is the last of both."""
    for row, name in enumerate(classes):
        if name in known_classes:
            table.rows[row] = known.rows[known_classes.index(name)]
    table.rows[-1] = known.rows[-1]
