"""result.json of a measurement, and whether it answers the same request again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smidgen.errors import UsageError
from smidgen.evaluation.schemas import MOST_RESULT_BYTES, Result
from smidgen.files.reading import Unreadable, fit, read_json
from smidgen.files.run_files import RESULT
from smidgen.files.standing import START_OVER, standing
from smidgen.library.files import beside
from smidgen.sampling.folder import DEFAULT_SAMPLERS

STATES = ("images_state", "reference_state")


def default_output(images: Path) -> Path:
    """result.json in a folder or beside a run's delta; <name>.result.json beside another file."""
    if images.is_dir():
        return images / RESULT
    return beside(images, RESULT)


def finished_result(output: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document in `output` if it answers this very request, None if there is no file.

    Raises: UsageError if the file holds something else, naming what differs.
    """
    if not output.exists():
        return None
    try:
        document = read_json(output, dict[str, Any], MOST_RESULT_BYTES)
        before = fit(document, Result).request
    except Unreadable:
        document, before = {}, None
    if before is None:
        raise UsageError(
            f"{output} exists and is no result of evaluate; give another output, or {START_OVER}"
        )
    if request.get("sampler") is None:
        before |= {"sampler": None} if before.get("sampler") in DEFAULT_SAMPLERS else {}
    for name in ("images", "reference"):
        if before.pop(f"{name}_state", None) != request.get(f"{name}_state"):
            raise UsageError(
                f"{output} holds another result: the {name} changed; give another output, or "
                f"{START_OVER}"
            )
    standing(output, "a result", before, request, finished=True, not_compared=STATES)
    return document


def state_of(path: Path) -> str:
    """A hash of names, sizes and times of change of a file, or of all in a folder but results."""
    total = hashlib.sha256()
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in found:
        if file.is_file() and not file.name.endswith(RESULT):
            facts = file.stat()
            name = os.fsencode(file.relative_to(path))
            total.update(name + f"/{facts.st_size}/{facts.st_mtime_ns}\n".encode())
    return total.hexdigest()[:32]
