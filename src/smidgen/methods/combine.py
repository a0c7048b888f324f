"""Several methods as one: "difffit+lora" is one delta with the edits of both. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, make_dataclass
from typing import TYPE_CHECKING

from smidgen.errors import SmidgenError
from smidgen.methods.method import Method

if TYPE_CHECKING:
    from smidgen.core.edits import Edit

PLUS = "+"


def combine(methods: Mapping[str, Method]) -> Method:
    """The method that trains what all `methods` train, their edits in this order.

    Its config has a field for each method, with that method's config. The learning rate is the
    smallest of theirs.
    """
    return Method(
        config=_config(methods),
        default_lr=min(method.default_lr for method in methods.values()),
    )


def field_of(method: str) -> str:
    """The field of a combination's config that has the config of this method."""
    return method.replace("-", "_")


def merged(groups: Mapping[str, Mapping[str, Edit]]) -> dict[str, Edit]:
    """The edits of all methods by name in order. A label table, and any other edit that two share
    by name and form, is there once.

    Raises: SmidgenError if two methods want different things for one tensor of the base.
    """
    edits: dict[str, Edit] = {}
    owners: dict[str, str] = {}  # name of an edit -> its method
    # component of the base and parameter there that an edit replaces -> its method
    claimed: dict[tuple[str, str], str] = {}
    for method, group in groups.items():
        for name, edit in group.items():
            if name in edits and edits[name].spec() == edit.spec():
                continue
            if name in owners:
                _refuse(owners[name], method, name)
            claims = {(edit.component, claim): method for claim in edit.claims()}
            for claim in sorted(claims.keys() & claimed.keys()):
                _refuse(claimed[claim], method, claim[1])
            edits[name], owners[name] = edit, method
            claimed |= claims
    for name, method in owners.items():
        for outer in _outer(name):
            if outer in owners:
                _refuse(owners[outer], method, outer)
    return edits


def _outer(name: str) -> list[str]:
    """The dotted names that the name lies in."""
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(1, len(parts))]


def _refuse(one: str, other: str, what: str) -> None:
    raise SmidgenError(
        f'{one} and {other} cannot be combined with these options: both train "{what}", each in '
        "its own way; leave one of them out"
    )


def _config(methods: Mapping[str, Method]) -> type:
    """A frozen dataclass with a field for the config of each method."""

    return make_dataclass(
        "Config",
        [
            (field_of(name), method.config, field(default_factory=method.config))
            for name, method in methods.items()
        ],
        namespace={"__doc__": f"The options of {', '.join(methods)}, each under its own name."},
        frozen=True,
        kw_only=True,
    )
