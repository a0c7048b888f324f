"""The deltas on the hub. What their cards say is somebody's word: read if it has the form that
smidgen writes, shown as unknown otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from smidgen.files.reading import Unreadable, fit
from smidgen.hub import client
from smidgen.hub.config import TAG, ListConfig

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What a card says in its metadata for those who list deltas."""

    base: str | None = None
    fingerprint: str | None = None
    method: str | None = None
    trainable: int | None = None
    classes: int | None = None


def list_deltas(config: ListConfig) -> dict[str, Any]:
    """`deltas`, a row for each; `more` says whether there are further ones on the hub, of which
    some may be of the base that is asked for.

    Raises: SmidgenError if the hub cannot be asked.
    """
    found = client.models(config, config.limit + 1)
    rows = [_row(one) for one in found[: config.limit]]
    if config.base is not None:
        rows = [row for row in rows if config.base in (row["base"], row["base_model"])]
    return {"deltas": rows, "more": len(found) > config.limit}


def _row(found: ModelInfo) -> dict[str, Any]:
    card = {} if found.card_data is None else found.card_data.to_dict()
    try:
        summary = fit(card.get(TAG) or {}, Summary)
    except Unreadable:
        summary = Summary()
    base_model = card.get("base_model")
    changed = found.last_modified
    return {
        "repo": found.id,
        "base": summary.base,
        "base_model": base_model if isinstance(base_model, str) else None,
        "fingerprint": summary.fingerprint,
        "method": summary.method,
        "trainable": summary.trainable,
        "classes": summary.classes,
        "private": bool(found.private),
        "changed": None if changed is None else changed.strftime("%Y-%m-%d"),
    }
