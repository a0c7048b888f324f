"""What the folder of a DiT says of it besides its shape and weights: class names and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smidgen.diffusion.schedule import Schedule
from smidgen.errors import SmidgenError
from smidgen.models.dit import DiTConfig
from smidgen.models.dit_diffusers import class_names_of_index, schedule_from_diffusers
from smidgen.models.dit_weights import FORMAT
from smidgen.models.files import read_json
from smidgen.models.schemas import Scheduler


def class_names_of(
    described: Mapping[str, Any], config: DiTConfig, source: Path
) -> tuple[str, ...]:
    """One name for each class, from our config.json or a pipeline's index.

    Raises: SmidgenError for names that do not fit the number of classes.
    """
    if described.get("format") != FORMAT or "class_names" not in described:
        return class_names_of_index(described, config.num_classes)
    names = tuple(described["class_names"])
    if len(names) != config.num_classes or len(set(names)) != len(names):
        raise SmidgenError(
            f"{source}/config.json lists {len(set(names))} different class names for "
            f"{config.num_classes} classes"
        )
    return names


def schedule_of(described: Mapping[str, Any], source: Path) -> Schedule:
    """The schedule that the folder describes, else the linear one of the released models.

    Raises: SmidgenError for a schedule of an unknown kind.
    """
    scheduler = source / "scheduler" / "scheduler_config.json"
    if described.get("format") == FORMAT:
        fields: dict[str, Any] = dict(described.get("schedule") or {"kind": "linear"})
        kind = fields.pop("kind", None)
        try:
            if kind == "linear":
                return Schedule.linear(**fields)
        except (TypeError, ValueError) as error:
            raise SmidgenError(f"{source}/config.json: schedule: {error}") from error
        raise SmidgenError(f'{source}/config.json: schedule "{kind}"; expected linear')
    if scheduler.is_file():
        return schedule_from_diffusers(read_json(scheduler, Scheduler), scheduler)
    return Schedule.linear()
