"""Our own folder of a base, as glyphs/base.py leaves it: the package reads it and writes none."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from smidgen.diffusion.schedule import Schedule
from smidgen.errors import SmidgenError
from smidgen.files.writing import write_json
from smidgen.models.codec import Codec, save_codec
from smidgen.models.dit import DiT
from smidgen.models.dit_weights import FORMAT, WEIGHTS
from smidgen.models.files import write_safetensors_file


def write_safetensors(
    model: DiT,
    folder: str | Path,
    *,
    codec: Codec | None = None,
    class_names: Sequence[str] = (),
    schedule: Schedule | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes our folder: config.json, dit.safetensors and, with a codec, vae/.

    `dtype` None keeps the model's.

    Raises: SmidgenError for a schedule that is not linear, or if the disk refuses.
    """
    folder = Path(folder)
    document: dict[str, Any] = {"format": FORMAT, "dit": dataclasses.asdict(model.config)}
    if class_names:
        document["class_names"] = list(class_names)
    if codec is not None:
        document["image_size"] = model.config.image_size * codec.factor
    if schedule is not None:
        document["schedule"] = _schedule_spec(schedule)
    state = {k: t if dtype is None else t.to(dtype) for k, t in model.state_dict().items()}
    write_safetensors_file(state, folder / WEIGHTS)
    if codec is not None:
        save_codec(codec, folder / "vae")
    write_json(document, folder / "config.json")


def _schedule_spec(schedule: Schedule) -> dict[str, Any]:
    start, end = float(schedule.betas[0]), float(schedule.betas[-1])
    linear = Schedule.linear(len(schedule.betas), start, end).betas
    if not torch.allclose(schedule.betas, linear, rtol=1e-9):
        raise SmidgenError("only a linear schedule can be written in smidgen's own folder")
    return {"kind": "linear", "num_steps": len(linear), "beta_start": start, "beta_end": end}
