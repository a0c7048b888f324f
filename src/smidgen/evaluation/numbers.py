"""The metrics' numbers, from what was accumulated of the images and is known of the reference.

A row of table.py says which function is called and what it needs; here it gets that, or the reason
why it cannot is told. The formulas are in metrics.py, kernels.py, neighbours.py and similarity.py.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from smidgen.errors import SmidgenError
from smidgen.evaluation.accumulate import Accumulated
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.samples import Others, Samples
from smidgen.evaluation.statistics import Statistics
from smidgen.evaluation.table import METRICS, Found, Metric

UNNAMED = "nothing says what each image was meant to show"


class Unknown(SmidgenError):
    """A metric that cannot be computed here; the message says why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sets:
    """The images and the reference as one extractor sees them.

    `intended` is what each image was meant to show, None where that is not known or not among the
    reference's classes. `prompt` made the texts that images are compared with, of which `told` says
    whether they are what the images were meant to show. `samples` are those of a personalisation,
    `others` those of a delta in a base that reads prompts, None of anything else.
    """

    made: Accumulated
    known: Statistics
    extractor: Extractor
    intended: Sequence[str] | None
    prompt: str
    told: bool = True
    samples: Samples | None = None
    others: Others | None = None


def compute(names: Sequence[str], sets: Sets) -> tuple[dict[str, Found], list[str]]:
    """The metrics by name, with the value None for one that is unknown, and why those are."""
    found: dict[str, Found] = {}
    reasons: list[str] = []
    calls: dict[str, Found] = {}
    for name in names:
        row = METRICS[name]
        key = row.group or name
        try:
            call = calls[key] = calls.get(key) or _call(row, sets)
        except Unknown as reason:
            found[name] = Found(value=None)
            reasons.append(f"{name} unknown: {reason}")
        else:
            found[name] = replace(call, value=call.value[name]) if row.group else call
    return found, reasons


def _call(row: Metric, sets: Sets) -> Found:
    """What the row's function says of the sets, with all settings. Raises: Unknown."""
    value = pkgutil.resolve_name(row.function)(*_given(row, sets), **row.settings)
    found = value if isinstance(value, Found) else Found(value=value)
    if found.value is None:
        raise Unknown("; ".join(found.notes))
    parts = found.value.values() if isinstance(found.value, Mapping) else [found.value]
    if not all(map(math.isfinite, parts)):
        raise Unknown(f"it comes out as {found.value}; look at the images and the reference")
    settings = {**row.settings, **found.settings}
    if row.needs == "texts":
        settings["prompt"] = sets.prompt
    return replace(found, settings=settings)


def _given(row: Metric, sets: Sets) -> tuple[Any, ...]:
    """The arguments of the row's function, see Metric.needs."""
    made, known = sets.made, sets.known
    match row.needs:
        case "gaussian":
            gaussians = made.gaussian, known.gaussian
            return tuple(part for one in gaussians for part in (one.mean, one.covariance))
        case "features":
            if known.features is None:
                raise Unknown("the reference holds no features; give the folder of its images")
            assert made.features is not None, "the accumulator was told of the metric"
            for what, count in (("images", made.count), ("reference", len(known.features))):
                if count < row.min_images:
                    raise Unknown(f"{count} {what}; it takes {row.min_images}")
            return made.features, known.features, sets.extractor.device
        case "features-to-gaussian":
            assert made.features is not None, "the accumulator was told of the metric"
            if made.count < row.min_images:
                raise Unknown(f"{made.count} images; it takes {row.min_images}")
            return made.features, known.gaussian.mean, known.gaussian.covariance
        case "directions":
            if known.mean_direction is None:
                raise Unknown("the reference has no mean direction; give the folder of its images")
            return made.mean_direction, known.mean_direction
        case "probabilities":
            return (made.probabilities[row.head or ""],)
        case "texts":
            if not sets.told or made.text_cosines is None:
                raise Unknown(UNNAMED)
            return (made.text_cosines,)
        case "classes":
            return _classified(sets)
        case "samples":
            assert sets.samples is not None, "the plan gives such metrics to a personalisation only"
            return (sets.samples,)
        case "others":
            assert sets.others is not None, "the plan gives such metrics where prompts are read"
            return (sets.others,)


def _classified(sets: Sets) -> tuple[Any, ...]:
    """Scripts share names of letters: a head that knows the reference's other classes too comes
    first.
    """
    if sets.intended is None:
        raise Unknown(UNNAMED)
    known, drawn = sets.known, set(sets.intended)
    of = sets.extractor.head_for
    head = of(drawn | set(known.classes)) or of(drawn)
    if head is None:
        raise Unknown(f'"{sets.extractor.name}" has no head for the classes')
    names = sets.extractor.heads[head]
    index = {name: number for number, name in enumerate(names)}
    real = None
    if head in known.predictions and known.classes and set(known.classes) <= set(index):
        meant = torch.tensor([index[name] for name in known.classes])[known.class_numbers]
        real = known.predictions[head], meant
    intended = torch.tensor([index[name] for name in sets.intended])
    return sets.made.predictions[head], intended, real, head, names
