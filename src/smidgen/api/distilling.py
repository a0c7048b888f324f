"""`sds`: a relief that a base, with or without a delta, takes for what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smidgen.api.evaluation import delta_file
from smidgen.core.delta import Delta
from smidgen.distillation.config import DOCUMENT, RELIEF, VIEWS, DistillationConfig
from smidgen.distillation.run import Distillation, Report, distill
from smidgen.files.settings import make
from smidgen.files.writing import write_json, write_png
from smidgen.models.base import Base
from smidgen.models.files import write_safetensors_file
from smidgen.models.pretrained import load_base


def sds(
    base: Base | str | Path,
    output: str | Path | None = None,
    *,
    delta: Delta | str | Path | None = None,
    report: Report | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """A coloured relief is changed until `base` with `delta` (one, or its file or run) takes its
    views for the subject: score distillation, an experiment beyond the paper. Returns what sds.json
    has (docs/sds.md); with `output` the relief and its views are files in that folder.

    `settings`: those of DistillationConfig, such as prompt, class_name, steps, guidance, seed.

    Raises: UsageError for a setting that makes no sense, or what is no run or delta; SmidgenError
        for a delta of another base, or if the disk refuses.
    """
    config = make(DistillationConfig, settings)
    loaded = base if isinstance(base, Base) else load_base(base)
    found = distill(loaded, load_delta(delta), config, report)
    if output is not None:
        write_distillation(found, Path(output))
    return found.document()


def load_delta(delta: Delta | str | Path | None) -> Delta | None:
    """One, from its file or run. Raises: UsageError for what is neither."""
    if delta is None or isinstance(delta, Delta):
        return delta
    return Delta.load(delta_file(Path(delta)))


def write_distillation(
    found: Distillation, folder: Path, request: dict[str, Any] | None = None
) -> None:
    """All views as one picture, the relief, and sds.json, which is written last.

    Raises: SmidgenError if the disk refuses.
    """
    write_png(Image.fromarray(np.concatenate(list(found.views), axis=1)), folder / VIEWS)
    relief = found.relief
    write_safetensors_file({"heights": relief.heights, "colours": relief.colours}, folder / RELIEF)
    document = found.document()
    write_json(document if request is None else {**document, "request": request}, folder / DOCUMENT)
