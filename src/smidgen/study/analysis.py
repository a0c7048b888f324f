"""What the finished runs of a study show: STUDY/analysis.json.

Arms are compared over the runs that they share; a factor's effect is that of statistics/anova.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

import msgspec

from smidgen.errors import SmidgenError, UsageError, closest
from smidgen.files.writing import write_json
from smidgen.statistics.anova import anova
from smidgen.statistics.bootstrap import Comparison, compare_methods, mean_with_interval
from smidgen.statistics.config import AnovaConfig
from smidgen.statistics.effects import CONFIDENCE
from smidgen.study.costs import times_of, training_name
from smidgen.study.design import Design
from smidgen.study.results import finished, rows_of, write_table
from smidgen.training.config import RunConfig

ANALYSIS = "analysis.json"
OF_AN_ARM = ("trainable", "total", "delta_bytes", "seconds", "first_seconds")

Row = Mapping[str, Any]


def analyse_study(design: Design) -> dict[str, Any]:
    """The statistics of what is finished, written to analysis.json beside table.csv.

    Raises: SmidgenError if nothing is finished; UsageError if the results lack the study's metric.
    """
    rows = rows_of(design)
    write_table(design, rows)
    document = analysis_of(design, rows)
    times, notes = times_of(design)
    if times is not None:
        document["time"] = {"reference": times.reference, "rounds": times.rounds}
        document["notes"] += notes
        cells = {arm_name(design, cell): cell for cell in design.cells()}
        for arm in document["arms"]:
            cost = times.arms.get(training_name(design, cells[arm["arm"]]))
            if cost is not None:
                arm["cost"] = {
                    n: v for n, v in msgspec.to_builtins(cost).items() if n != "settings"
                }
    write_json(document, design.output / ANALYSIS)
    return document


def analysis_of(design: Design, rows: Sequence[Row]) -> dict[str, Any]:
    """`analyse_study` of rows, without writing."""
    done, metric = finished(rows), design.table.metric
    if not done:
        raise SmidgenError(f"{design.output}: no run is finished; smidgen study run does them")
    named = {name for row in done for name in row}
    for name in design.table.also:
        if name not in named:
            raise UsageError(f'the results have no number "{name}"{closest(name, named)}')
    if lacking := [row for row in done if metric not in row]:
        known = [name for name, value in lacking[0].items() if isinstance(value, int | float)]
        raise UsageError(f'the results have no metric "{metric}"{closest(metric, known)}')
    comparisons, effects, notes = compared(design, done)
    if missing := len(rows) - len(done):
        notes.append(f"{missing} of {len(rows)} runs have no result and are in no number")
    return {
        "metric": metric,
        "better": design.table.better,
        "runs": len(rows),
        "finished": len(done),
        "arms": [arm_facts(design, arm, done) for arm in arms_of(design)],
        "comparisons": [asdict(one) for one in comparisons],
        "anova": effects,
        "says": list(sentences(design, comparisons, effects)),
        "notes": notes,
    }


def compared(
    design: Design, done: Sequence[Row]
) -> tuple[list[Comparison], dict[str, Any] | None, list[str]]:
    """The arms in pairs, what each factor does, and notes on what of it cannot be told."""
    if not design.arms:
        return [], None, ["one arm: there is nothing to compare"]
    comparisons: list[Comparison] = []
    effects: dict[str, Any] | None = None
    notes: list[str] = []
    try:
        comparisons = compare_methods(
            scores_of(design, done),
            higher_is_better=design.table.better == "high",
            reference=design.table.against,
        )
    except SmidgenError as error:
        notes.append(f"arms are not compared: {error}")
    try:
        effects = anova(columns_of(design, done), anova_config(design))
    except SmidgenError as error:
        notes.append(f"no analysis of variance: {error}")
    return comparisons, effects, notes


def arms_of(design: Design) -> list[str]:
    """The arms by name, in the order of the recipe."""
    return list(dict.fromkeys(arm_name(design, cell) for cell in design.cells()))


def arm_name(design: Design, row: Row) -> str:
    """The levels of what is compared, as one name; the method where nothing is."""
    method = str(design.fixed.get("method", RunConfig.method))
    return ":".join(row[name] for name in design.arms) or method


def block_name(design: Design, row: Row) -> str:
    """The levels of the blocks, as one name; "all" where there are none."""
    return ":".join(row[name] for name in design.table.blocks) or "all"


def scores_of(
    design: Design, rows: Sequence[Row], metric: str | None = None
) -> dict[str, dict[tuple[str, str], float]]:
    """The metric by arm, and of an arm by block and seed."""
    found: dict[str, dict[tuple[str, str], float]] = {}
    for row in rows:
        value = row.get(metric or design.table.metric)
        if value is not None:
            runs = found.setdefault(arm_name(design, row), {})
            runs[block_name(design, row), str(row["seed"])] = value
    return found


def anova_config(design: Design) -> AnovaConfig:
    """What is asked of the table: all that is compared, beside the blocks that differ."""
    blocks = [name for name in design.table.blocks if len(design.factors[name]) > 1]
    return AnovaConfig(
        metric=design.table.metric,
        factors=design.arms,
        blocks=tuple(blocks),
        interaction=tuple(design.table.interactions),
    )


def columns_of(design: Design, rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The columns that the analysis of variance reads."""
    return {name: [row[name] for row in rows] for name in (*design.factors, design.table.metric)}


def arm_facts(design: Design, arm: str, rows: Sequence[Row]) -> dict[str, Any]:
    """An arm's row of the table: its mean over blocks with an interval, those of each block, what
    it trains and costs, and with what it was tuned.
    """
    own = [row for row in rows if arm_name(design, row) == arm]
    tune = design.table.tune
    facts: dict[str, Any] = {"arm": arm, "runs": len(own)}
    if not own:
        return facts
    (scores,) = scores_of(design, own).values()
    facts["mean"], facts["interval"] = mean_with_interval(scores)
    facts["also"] = {
        name: mean_with_interval(one)
        for name in design.table.also
        for one in scores_of(design, own, name).values()
    }
    facts["blocks"] = {
        block: {"values": values, "mean": mean(values)}
        for block, values in by_block(scores).items()
    }
    for name in OF_AN_ARM:
        if values := [row[name] for row in own if row.get(name) is not None]:
            facts[name] = mean(values)
    if own[0].get("total"):
        facts["share"] = mean(row["trainable"] / row["total"] for row in own)
    if tune is not None:
        facts[tune.setting] = own[0].get(tune.setting)
    return facts


def by_block(scores: Mapping[tuple[str, str], float]) -> dict[str, list[float]]:
    """The values of an arm, by block."""
    found: dict[str, list[float]] = {}
    for (block, _), value in scores.items():
        found.setdefault(block, []).append(value)
    return found


def sentences(
    design: Design, comparisons: Sequence[Comparison], effects: Mapping[str, Any] | None
) -> Iterator[str]:
    """What the numbers support, and nothing stronger."""
    metric = design.table.metric
    least = min((one.least_p for one in comparisons), default=0.0)
    if least * len(comparisons) >= 1 - CONFIDENCE:  # Holm's correction of the smallest
        pairs = max(one.num_pairs for one in comparisons)
        needed = (1 - CONFIDENCE) / len(comparisons)
        yield (
            f"No difference in {metric} between two arms can be shown by so few runs: {pairs} "
            f"pairs have no p below {least:.3g}, and by Holm's correction one below {needed:.2g} "
            "is needed. The table has the differences with their intervals."
        )
        comparisons = ()
    for one in comparisons:
        first, second = one.methods
        low, high = one.difference_interval
        told = f"difference {one.difference:+.3g}, 95 % {low:+.3g} to {high:+.3g}"
        told += f", p = {one.p_holm:.2g} by Holm"
        if one.verdict == "no difference shown":
            yield f"No difference in {metric} is shown between {first} and {second} ({told})."
        else:
            yield f"{first} is {one.verdict} than {second} in {metric} ({told})."
    for name, one in ((effects or {}).get("terms") or {}).items():
        low, high = one["partial_omega_squared_interval"]
        size = f"partial omega squared {one['partial_omega_squared']:.2f}"
        size += f", 95 % {low:.2f} to {high:.2f}"
        test = f"F({one['df']}, {one['df_residual']}) = {one['F']:.2f}, p = {one['p']:.2g}"
        verb = "makes a difference to" if one["p"] < 0.05 else "is not shown to change"
        yield f"{name} {verb} {metric} ({test}; {size})."
