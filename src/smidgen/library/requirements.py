"""What the metrics of a delta must reach before it is served, and whether its result does.

A metric's direction is that of the table of metrics; of a mean with a spread the worse end counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from smidgen.errors import UsageError, closest, shown
from smidgen.evaluation.compare import feature_blocks
from smidgen.evaluation.metric_table import value_text
from smidgen.evaluation.table import METRICS
from smidgen.files.toml import toml


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """The worst value of a metric with which a delta is served; `features` None: the first ones of
    the result that have the metric.
    """

    metric: str
    bound: float
    features: str | None = None

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """METRIC=NUMBER or FEATURES:METRIC=NUMBER. Raises: UsageError for anything else."""
        name, _, number = text.partition("=")
        features, colon, metric = name.strip().rpartition(":")
        if metric not in METRICS:
            raise UsageError(f"require has the metric {toml(metric)}{closest(metric, METRICS)}")
        try:
            bound = float(number)
        except ValueError:
            bound = math.nan
        if not math.isfinite(bound) or (colon and not features):
            raise UsageError(
                f"require is {toml(text)}; expected METRIC=NUMBER, such as class_agreement=0.8, or "
                "FEATURES:METRIC=NUMBER"
            )
        return cls(metric=metric, bound=bound, features=features or None)

    @property
    def higher_is_better(self) -> bool:
        """Whether the bound is a floor, and not a ceiling."""
        return METRICS[self.metric].higher_is_better


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One requirement and what became of it; `worst` is the number that is compared with `bound`,
    None where there is none. `value` is as the result has it.
    """

    metric: str
    features: str | None = None
    bound: float
    higher_is_better: bool
    value: Any = None
    worst: float | None = None
    passed: bool
    reason: str | None = None


def check_result(
    requirements: Sequence[Requirement], document: Mapping[str, Any], name: str
) -> list[Check]:
    """Each requirement against a result; `name` is what messages call that.

    Raises: SmidgenError if the document is no result of evaluate.
    """
    blocks = feature_blocks(name, document)
    return [_check(one, blocks) for one in requirements]


def worst_of(value: float | Mapping[str, float], *, higher_is_better: bool) -> float:
    """A number itself; of a mean with a spread the end of mean +- spread that is worse, as a
    training judges its best delta.
    """
    if not isinstance(value, Mapping):
        return value
    return value["mean"] - value["std"] if higher_is_better else value["mean"] + value["std"]


def _check(one: Requirement, blocks: Mapping[str, Mapping[str, Any]]) -> Check:
    known = [
        name
        for name, block in blocks.items()
        if one.features in (None, name) and block["metrics"].get(one.metric) is not None
    ]
    if not known:
        return Check(
            metric=one.metric,
            features=one.features,
            bound=one.bound,
            higher_is_better=one.higher_is_better,
            passed=False,
            reason=f"{one.metric} is not in the result (it has {shown(_names(blocks))}); evaluate "
            f"with metrics {one.metric}",
        )
    value = blocks[known[0]]["metrics"][one.metric]
    worst = worst_of(value, higher_is_better=one.higher_is_better)
    passed = worst >= one.bound if one.higher_is_better else worst <= one.bound
    word = "at least" if one.higher_is_better else "at most"
    bound = value_text(one.metric, one.bound)
    return Check(
        metric=one.metric,
        features=known[0],
        bound=one.bound,
        higher_is_better=one.higher_is_better,
        value=value,
        worst=worst,
        passed=passed,
        reason=None
        if passed
        else f"{one.metric} is {value_text(one.metric, value)}; expected {word} {bound}",
    )


def _names(blocks: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(name for one in blocks.values() for name in one["metrics"]))
