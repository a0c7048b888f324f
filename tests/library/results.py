"""Deltas with results beside them, as evaluate leaves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smidgen.files.reading import sha256_of
from smidgen.files.run_files import RESULT
from smidgen.library.files import beside
from tests.serving.serving import fitting
from tests.tiny.bases import tiny_base


def write_run(folder: Path, metrics: dict[str, Any] | None = None, **sampling: Any) -> Path:
    """The file of a delta as a training leaves it, with a result of these metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "delta.safetensors"
    fitting(tiny_base(), "difffit").save(path)
    if metrics is not None:
        write_result(path, metrics, **sampling)
    return path


def write_result(delta: Path, metrics: dict[str, Any], **sampling: Any) -> None:
    """The result of a delta, beside it."""
    drawn = {"delta_sha256": sha256_of(delta), "steps": 20, **sampling}
    protocol = {"features": "glyphs", "num_images": 480, "sampling": drawn}
    document = {"metrics": metrics, "protocol": protocol}
    beside(delta, RESULT).write_text(json.dumps(document))
