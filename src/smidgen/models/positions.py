"""Positions of a DiT at another image size than it was trained at: which there are, what is said of
them, and how a delta keeps to its own. Imports no torch; tables are computed in dit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from smidgen.errors import UsageError
from smidgen.sizes import ImageSize

if TYPE_CHECKING:
    from smidgen.core.delta import Delta
    from smidgen.models.base import Base

# extend: coordinates go on; stretch: they cover the range of the base's own size, down and across
Positions = Literal["extend", "stretch"]


def positions_at(
    trained: ImageSize | None, used: ImageSize | None, asked: Positions | None
) -> Positions | None:
    """The positions of a base that was `trained` at one size and is `used` at another, those that
    are `asked` for, None: extended ones; None at its own size, where all are the same. `used` None:
    as trained.
    """
    return None if used in (None, trained) else asked or "extend"


def given_positions(positions: Positions | None) -> dict[str, Any]:
    """What recipes say of them: nothing where that is what they mean without it."""
    return {"positions": positions} if positions == "stretch" else {}


def note_on_size(
    name: str | Path,
    trained: ImageSize | None,
    used: ImageSize | None,
    positions: Positions | None = None,
) -> str | None:
    """What a DiT knows of positions that are not stretched at another size than its own; None where
    there is nothing to say. `used` None: as trained, `trained` None: not known.
    """
    if trained is None or used is None or positions_at(trained, used, positions) != "extend":
        return None
    larger = used.width > trained.width or used.height > trained.height
    what = (
        f"extended, not stretched: those beyond {trained} pixels are new to it, and with positions "
        '"stretch" it knows all of them'
        if larger
        else "cut, not squeezed: it knows them as the upper left of its images, and with positions "
        '"stretch" as all of them'
    )
    return (
        f'base "{name}" was trained at {trained} pixels and is used at {used}: positions are {what}'
    )


def size_and_positions(delta: Delta | None) -> tuple[ImageSize | None, Positions | None]:
    """At which image size and with which positions a delta of a DiT was trained; None and None at
    the base's own size, of other networks, and of deltas that do not say it.
    """
    data: Any = {} if delta is None else delta.provenance.training.get("data")
    known = isinstance(data, Mapping) and "image_size" in data
    if not known or data.get("positions") not in ("extend", "stretch"):
        return None, None
    return ImageSize.of(data["image_size"]), cast(Positions, data["positions"])


def check_positions(delta: Delta, base: Base) -> None:
    """Raises: UsageError for a base with other positions than the delta was trained with; at its
    own size it has those of any delta.
    """
    _, trained = size_and_positions(delta)
    if None not in (trained, base.positions) and trained != base.positions:
        raise UsageError(
            f'the delta was trained with positions "{trained}", and base "{base.name}" has '
            f'positions "{base.positions}" at {base.image_size} pixels; give positions '
            f'"{trained}" (--positions {trained})'
        )
