"""Which metrics are computed on which features.

METRICS in table.py says what a metric needs; here the asked ones meet the chosen extractors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from smidgen.errors import UsageError
from smidgen.evaluation import features as table
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.contexts import GLYPHS_BASE
from smidgen.evaluation.features import PUBLISHED, RESIZED, Extractor, load_extractor
from smidgen.evaluation.names import PROMPT, check_names
from smidgen.evaluation.table import INCEPTION_HEAD, METRICS, Needs, needing


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """The extractors, and for each by name the metrics to compute.

    `asked` tells whether the metrics were named: then one that cannot be computed is an error, and
    else a warning.
    """

    extractors: tuple[Extractor, ...]
    metrics: Mapping[str, frozenset[str]]
    asked: bool
    prompt: str = PROMPT

    @property
    def first(self) -> Extractor:
        """The extractor to which a result's own `metrics` belong."""
        return self.extractors[0]

    def needs(self, extractor: Extractor, needed: Needs) -> bool:
        """Whether a metric of this extractor needs that."""
        return bool(needing(self.metrics[extractor.name], needed))


def make_plan(
    config: EvaluationConfig,
    device: str,
    of_subject: Collection[str] = (),
    *,
    others: bool = False,
) -> Plan:
    """The extractors on `device`, and their metrics. `of_subject` are those of the personalisation
    that is measured: they are its defaults, and some can be had of nothing else. `others`: samples
    of other prompts can be had.

    Raises: UsageError for unknown features, or a metric that none of them allow; SmidgenError for
        weights that cannot be had.
    """
    metrics = config.metric_names
    known = tuple(table.EXTRACTORS)
    names = check_names(config.features, metrics, config.prompt, known=known)
    found = _load(names, device, config.weights, config.resize)
    if metrics is None and of_subject:
        chosen = {
            e.name: frozenset(n for n in of_subject if allows(n, e, of_subject, others))
            for e in found
        }
        return Plan(extractors=found, metrics=chosen, asked=False)
    if metrics is None:
        chosen = {e.name: frozenset(n for n in METRICS if _default(n, e)) for e in found}
        return Plan(extractors=found, metrics=chosen, asked=False, prompt=config.prompt)
    for name in metrics:
        if not any(allows(name, extractor, of_subject, others) for extractor in found):
            raise UsageError(f"{name} needs {_needed(name)}; the features are {', '.join(names)}")
    chosen = {
        e.name: frozenset(n for n in metrics if allows(n, e, of_subject, others)) for e in found
    }
    if empty := [name for name, some in chosen.items() if not some]:
        raise UsageError(f"none of the metrics {', '.join(metrics)} is defined on {empty[0]}")
    return Plan(extractors=found, metrics=chosen, asked=True, prompt=config.prompt)


def _load(
    names: Sequence[str], device: torch.device | str, weights: str | Path | None, resize: str | None
) -> tuple[Extractor, ...]:
    """The extractors; of several, each gets the options that it takes. Raises: UsageError."""
    takers = {"weights": [n for n in names if n in PUBLISHED], "resize": [*RESIZED]}
    found = []
    for name in names:
        options: dict[str, Any] = {"weights": weights, "resize": resize}
        for option, takes in takers.items():
            if name not in takes and set(takes) & set(names):
                options[option] = None
        found.append(load_extractor(name, device, **options))
    return tuple(found)


def allows(
    name: str, extractor: Extractor, of_subject: Collection[str] = (), others: bool = False
) -> bool:
    """Whether the metric is defined on these features, and of what is measured."""
    row = METRICS[name]
    return (
        (not row.features or extractor.name in row.features)
        and (row.head is None or row.head in extractor.heads)
        and (row.needs != "classes" or bool(extractor.heads))
        and (row.needs != "texts" or extractor.text is not None)
        and (row.needs != "samples" or name in of_subject)
        and (row.needs != "others" or others)
    )


def _default(name: str, extractor: Extractor) -> bool:
    """ImageNet's numbered classes are no names of a user's: nothing of them unless asked."""
    if METRICS[name].needs == "classes" and set(extractor.heads) <= {INCEPTION_HEAD}:
        return False
    return METRICS[name].by_default and allows(name, extractor)


def _needed(name: str) -> str:
    row = METRICS[name]
    features = row.features
    if row.needs == "samples":
        only = f" of {GLYPHS_BASE}, and the features {features[0]}" if features else ""
        return f"a run of --task dreambooth{only}"
    if row.needs == "others":
        return "a run or a delta of a base that reads prompts"
    if features:
        return f"the features {' or '.join(features)}"
    return "features with class names, such as glyphs"
