"""What commands leave beside their output, and whether it answers the same request again:
sample.json beside images, result.json of a measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smidgen.errors import UsageError

RECORD, RESULT = "sample.json", "result.json"
DELTA = "delta.safetensors"
DEFAULT_SAMPLERS = ("ddpm", "euler")  # what no sampler means, and what the record then says


def read_record(folder: Path) -> dict[str, Any]:
    """The folder's sample.json, {} without one of ours."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        parts = record["settings"], record["images"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return record if all(isinstance(part, dict) for part in parts) else {}


def check_record(
    folder: Path, record: Mapping[str, Any], settings: Mapping[str, Any], *, force: bool
) -> bool:
    """Whether the folder already holds exactly these images.

    Raises: UsageError if it holds other pictures or, without `force`, images of other settings or
        another program's record.
    """
    pictures = {path.name for path in folder.glob("*.png")} if folder.is_dir() else set()
    ours = set(record.get("images", {}))
    if pictures - ours:
        raise UsageError(
            f"{folder} holds other pictures, such as {min(pictures - ours)}; "
            "give a new or an empty folder"
        )
    if not record and (folder / RECORD).exists() and not force:
        raise UsageError(
            f"{folder / RECORD} exists and is none of smidgen's; give another folder, or --force "
            "to replace it"
        )
    before = record.get("settings", settings)
    different = [
        name for name in settings if not same_setting(name, before.get(name), settings[name])
    ]
    if different and not force:
        changes = ", ".join(f"{name} {before.get(name)} -> {settings[name]}" for name in different)
        raise UsageError(
            f"{folder} holds images of other settings ({changes}); "
            "give another folder, or --force to replace them"
        )
    return bool(ours) and not different and bool(record.get("finished")) and pictures == ours


def same_setting(name: str, before: Any, now: Any) -> bool:
    """Whether a setting draws the same images; none at all is the same as an empty one."""
    if name == "sampler" and now is None:
        return before is None or before in DEFAULT_SAMPLERS
    return (before or None) == (now or None)


def remove_images(folder: Path) -> None:
    """Remove the images that the folder's record lists, which lie in it and nowhere else."""
    for name in read_record(folder).get("images", {}):
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)


def default_output(images: Path) -> Path:
    """result.json in a folder or beside a run's delta; <name>.result.json beside another file."""
    if images.is_dir():
        return images / RESULT
    return images.parent / (RESULT if images.name == DELTA else f"{images.stem}.{RESULT}")


def finished_result(output: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The document in `output` if it answers this very request, None if there is no file.

    Raises: UsageError if the file holds something else, naming what differs.
    """
    if not output.exists():
        return None
    try:
        document = json.loads(output.read_text(encoding="utf-8"))
        before = dict(document["request"])
    except (OSError, ValueError, LookupError, TypeError):
        raise UsageError(
            f"{output} exists and is no result of evaluate; give another --output, or --force"
        ) from None
    changed = [
        name
        for name in {**before, **request}
        if not same_setting(name, before.get(name), request.get(name))
    ]
    if not changed:
        return document
    words = (
        f"{name.removesuffix('_state')} changed"
        if name.endswith("_state")
        else f"{name} {before.get(name)} -> {request.get(name)}"
        for name in changed
    )
    raise UsageError(
        f"{output} holds another result ({', '.join(words)}); give another --output, "
        "or --force to replace it"
    )


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
