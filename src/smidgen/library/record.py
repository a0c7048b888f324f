"""gate.json: what the gate found of a delta, bound to the bytes of its file; and whether that lets
it be served. Whoever serves reads no more than this file.

Nothing here imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from smidgen.files.reading import Unreadable, read_json
from smidgen.files.writing import write_json
from smidgen.library.files import GATE, beside
from smidgen.library.requirements import Check

FORMAT_VERSION = 1
MOST_BYTES = 2**20


class Copies(msgspec.Struct, frozen=True, kw_only=True):
    """How many drawn images are copies of training pictures.

    `copied` of `num_images` are nearer to a training picture than `distance`; `share_low` and
    `share_high` are the ends of the 95 % interval of their share, and of real pictures `by_chance`
    would be so near. `protocol` says how they were drawn and compared, `page` where the nearest
    pairs are shown.
    """

    num_images: int
    num_pictures: int
    copied: int
    share: float
    share_low: float
    share_high: float
    by_chance: float
    most: float
    distance: float
    passed: bool
    reason: str | None = None
    page: str | None = None
    protocol: dict[str, Any]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate found of the delta with this SHA-256; `protocol` is that of its result."""

    format_version: int = FORMAT_VERSION
    delta_sha256: str
    passed: bool
    reasons: list[str] = []
    checks: list[Check] = []
    copies: Copies | None = None
    protocol: dict[str, Any] | None = None


def write_record(record: Record, delta: Path) -> Path:
    """Write gate.json beside a delta; its path."""
    path = beside(delta, GATE)
    write_json(msgspec.to_builtins(record), path)
    return path


def read_record(delta: Path) -> Record:
    """The gate.json beside a delta. Raises: Unreadable."""
    return read_json(beside(delta, GATE), Record, MOST_BYTES)


def refusal(delta: Path, sha256: str) -> str | None:
    """Why a delta whose file has this SHA-256 may not be served; None if it passed the gate."""
    if not beside(delta, GATE).exists():
        return "it has not been through the gate (smidgen gate)"
    try:
        record = read_record(delta)
    except Unreadable as error:
        return f"its {GATE} cannot be read ({error.reason}); gate it again"
    if record.format_version > FORMAT_VERSION:
        return f"its {GATE} is of a newer smidgen"
    if record.delta_sha256 != sha256:
        return "its file is another one than that which went through the gate; gate it again"
    if not record.passed:
        return f"the gate refused it: {'; '.join(record.reasons)}"
    return None
