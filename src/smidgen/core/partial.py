"""A part of a delta: some of its edits, chosen by what they are and where they act."""

from __future__ import annotations

from dataclasses import replace

from smidgen.core.delta import Delta
from smidgen.core.edit import Edit
from smidgen.core.edits import EDITS, Table, Weight
from smidgen.errors import UsageError, closest

ALL, BARE = "all", "base"  # "none" is TOML's word for a setting that is not given
DENOISER = "denoiser"


def part_of(delta: Delta, words: str) -> Delta | None:
    """The edits of `delta` that `words` mean, as a delta that shares them; None for "base".

    Words have commas between them, each a kind of edits ("scale"), a component ("denoiser",
    "text_encoder") or a module ("blocks.3": edits with a site in there); "all" is all. With a minus
    before it, what a word means is left out: "-table" is all but tables. Without its label table a
    delta is one of the base's own classes.

    Raises: UsageError for a word that means no edit of this delta, or if none is left.
    """
    if words == BARE:
        return None
    chosen, left_out = set[str](), set[str]()
    given = [word.strip() for word in words.split(",")]
    for word in given:
        found = _meant(delta, word.removeprefix("-"))
        if word.startswith("-"):
            left_out |= found
        else:
            chosen |= found
    if all(word.startswith("-") for word in given):
        chosen = set(delta.edits)
    kept = {name: edit for name, edit in delta.edits.items() if name in chosen - left_out}
    if not kept:
        raise UsageError(
            f'edits "{words}" leaves none of the {len(delta.edits)} edits of this delta; give '
            f'"{BARE}" for the base alone'
        )
    if len(kept) == len(delta.edits):
        return delta
    has_table = [any(isinstance(e, Table) for e in edits.values()) for edits in (delta.edits, kept)]
    own = delta.provenance
    return Delta(
        kept,
        replace(
            own,
            classes=() if has_table == [True, False] else own.classes,
            training=own.training | {"edits": words},
        ),
    )


def _meant(delta: Delta, word: str) -> set[str]:
    """The names of the edits that one word means. Raises: UsageError if there are none."""
    if word == ALL:
        return set(delta.edits)
    kinds = [kind for kind in EDITS if any(edit.kind == kind for edit in delta.edits.values())]
    components = list(dict.fromkeys(e.component or DENOISER for e in delta.edits.values()))
    found = {
        name
        for name, edit in delta.edits.items()
        if word in (edit.kind, edit.component or DENOISER) or _acts_in(edit, word)
    }
    if not found:
        known = [ALL, BARE, *kinds, *components]
        raise UsageError(
            f'edits: "{word}" means none of this delta{closest(word, known)}; or give a module in '
            "which it acts (smidgen inspect shows them)"
        )
    return found


def _acts_in(edit: Edit, module: str) -> bool:
    """Whether a site of the edit, or a parameter that it replaces, is in this module."""
    modules = [site.module for site in edit.sites]
    if isinstance(edit, Weight):
        modules = [name.rpartition(".")[0] for name in edit.replaced()]
    outer = module.split(".")
    return any(one.split(".")[: len(outer)] == outer for one in modules)
