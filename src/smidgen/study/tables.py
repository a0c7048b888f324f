"""The tables of a report about a study, as words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from smidgen.files.toml import toml
from smidgen.study.analysis import arm_name, block_name
from smidgen.study.design import Design
from smidgen.study.results import finished

MOST_DIGITS = 4
STANDING = ("seed", "state", "why")

Table = dict[str, Any]  # title, head, rows


def tables_of(
    design: Design,
    analysis: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    blocks: Sequence[str],
) -> list[Table]:
    """All of them; one without rows has nothing to say."""
    return [
        main_table(design, analysis, blocks),
        block_table(design, rows, blocks),
        *effect_tables(analysis),
        comparison_table(analysis),
        cost_table(analysis),
        bytes_table(analysis, blocks),
        missing_table(design, rows),
    ]


def main_table(design: Design, analysis: Mapping[str, Any], blocks: Sequence[str]) -> Table:
    """DiffFit's Table 1: an arm a row, a block a column, the mean over them with its interval."""
    tune = design.table.tune
    timed = analysis.get("time")
    spent = ["training, s"] if timed is None else ["step, ms", f"of {timed['reference']}'s"]
    costs = ["parameters", "of the base", *spent]
    also = design.table.also
    head = ["arm", *blocks, "mean", "95 %", *also, *costs]
    head += [*([tune.setting] if tune else []), "runs"]
    if blocks == ["all"]:
        head.remove("all")
    rows = []
    for arm in analysis["arms"]:
        if "mean" not in arm:
            rows.append([arm["arm"], *[""] * (len(head) - 2), 0])
            continue
        own = [] if blocks == ["all"] else [cell_of(arm["blocks"].get(block)) for block in blocks]
        interval = arm["interval"]
        spread = "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
        share = f"{arm['share']:.2%}" if "share" in arm else ""
        tuned = [toml(arm.get(tune.setting))] if tune else []
        counts = [f"{arm.get('trainable', 0):,.0f}", share, *spent_by(arm, timed is not None)]
        beside = [with_spread(*arm["also"][name]) if name in arm["also"] else "" for name in also]
        means = [number(arm["mean"]), spread, *beside]
        rows.append([arm["arm"], *own, *means, *counts, *tuned, arm["runs"]])
    return {"title": f"{analysis['metric']} of each arm", "head": head, "rows": rows}


def block_table(design: Design, rows: Sequence[Mapping[str, Any]], blocks: Sequence[str]) -> Table:
    """Of a study of one arm all that is asked for of each block, the mean over seeds."""
    names = {name: name for name in (design.table.metric, *design.table.also)}
    names |= {"seconds": "training, s"}
    table: Table = {"title": "Each set", "head": ["set", *names.values()], "rows": []}
    for block in () if design.arms else blocks:
        own = [row for row in finished(rows) if block_name(design, row) == block]
        if own:
            found = ([row[name] for row in own if name in row] for name in names)
            table["rows"].append([block, *(number(fmean(one)) if one else "" for one in found)])
    return table


def spent_by(arm: Mapping[str, Any], timed: bool) -> list[str]:
    """Its step as it was timed and as a share of the reference's, or the seconds of its runs, with
    those of the training that it begins from.
    """
    if timed:
        cost = arm.get("cost")
        return ["", ""] if cost is None else [number(cost[n][0]) for n in ("step_ms", "ratio")]
    if "seconds" not in arm:
        return [""]
    before = f" + {arm['first_seconds']:.0f}" if "first_seconds" in arm else ""
    return [f"{arm['seconds']:.0f}{before}"]


def cost_table(analysis: Mapping[str, Any]) -> Table:
    """DiffFit's Table 2: what the training of each arm took, with all that came before it."""
    timed = [arm for arm in analysis["arms"] if "cost" in arm]
    reference = analysis.get("time", {}).get("reference")
    head = ["arm", "step, ms", f"of {reference}'s", "GFLOP a step", "training, GFLOP"]
    head += ["begun from, GFLOP", "base, GFLOP", "all, GFLOP", analysis["metric"]]
    rows = []
    for arm in timed:
        cost = arm["cost"]
        parts = (cost["gflops"], cost["gflops_before"], cost["gflops_of_base"])
        every = "" if parts[-1] is None else f"{sum(parts):,.0f}"
        counted = ["" if part is None else f"{part:,.0f}" for part in parts]
        spreads = [with_quartiles(cost[name]) for name in ("step_ms", "ratio")]
        mean = number(arm["mean"]) if "mean" in arm else ""
        rows.append([arm["arm"], *spreads, f"{cost['step_gflops']:,.1f}", *counted, every, mean])
    if all(arm["cost"]["gflops_of_base"] is None for arm in timed):
        rows, head = [[*row[:6], row[-1]] for row in rows], [*head[:6], head[-1]]
    title = "Training cost: medians of rounds in turn (quartiles), and operations"
    return {"title": title, "head": head, "rows": rows}


def with_quartiles(values: Sequence[float]) -> str:
    """Median, lower and upper quartile as a cell."""
    middle, low, high = map(number, values)
    return f"{middle} ({low} to {high})"


def bytes_table(analysis: Mapping[str, Any], blocks: Sequence[str]) -> Table:
    """What is kept of a fine-tune for each set: deltas, or copies of the network in float32."""
    count = len(blocks)
    rows = []
    for arm in analysis["arms"]:
        if count > 1 and {"delta_bytes", "total"} <= set(arm):
            deltas, copies = count * arm["delta_bytes"], count * 4 * arm["total"]
            share = f"{deltas / copies:.2%}"
            rows.append([arm["arm"], *(f"{one:,.0f}" for one in (deltas, copies)), share])
    head = ["arm", f"{count} deltas, bytes", f"{count} copies, bytes", "share"]
    return {"title": "Kept of one fine-tune for each set", "head": head, "rows": rows}


def with_spread(mean: float, interval: tuple[float, float] | None) -> str:
    """A mean and its interval, where there is one, as a cell."""
    return number(mean) + ("" if interval is None else f" ({' to '.join(map(number, interval))})")


def cell_of(block: Mapping[str, Any] | None) -> str:
    """The mean of an arm on a block, with the half range of its seeds."""
    if block is None:
        return ""
    values = block["values"]
    half = (max(values) - min(values)) / 2
    return number(block["mean"]) + (f" ± {number(half)}" if len(values) > 1 else "")


def effect_tables(analysis: Mapping[str, Any]) -> Iterator[Table]:
    """The analysis of variance: terms beside each other, and each factor alone."""
    found = analysis["anova"] or {"terms": {}, "one_way": {}}
    sizes = ("eta_squared", "partial_eta_squared", "omega_squared")
    head = ["factor", "df", "F", "p", *(name.replace("_", " ") for name in sizes)]
    for title, key in (("Analysis of variance", "terms"), ("Each factor alone", "one_way")):
        rows = [
            [
                name,
                f"{one['df']}, {one['df_residual']}",
                f"{one['F']:.2f}",
                f"{one['p']:.2g}",
                *(size_of(one, size) for size in sizes),
            ]
            for name, one in found[key].items()
        ]
        if rows:
            yield {"title": title, "head": head, "rows": rows}
    if contrasts := found.get("contrasts"):
        rows = [
            [
                f"{one['cell']} less {one['against']}",
                number(one["difference"]),
                " to ".join(map(number, one["interval"])),
                f"{one['p_holm']:.2g}",
            ]
            for one in contrasts
        ]
        head = ["cells that share no level with the rest", "difference", "95 %", "p (Holm)"]
        yield {"title": "Contrasts", "head": head, "rows": rows}


def size_of(effect: Mapping[str, Any], name: str) -> str:
    """The size of an effect that has this name, with its interval, as a cell."""
    low, high = effect[f"{name}_interval"]
    return f"{effect[name]:.2f} ({low:.2f} to {high:.2f})"


def comparison_table(analysis: Mapping[str, Any]) -> Table:
    """Each arm against another over the runs that both have."""
    rows = [
        [
            " less ".join(one["methods"]),
            number(one["difference"]),
            " to ".join(map(number, one["difference_interval"])),
            f"{one['improvement']:.2f}",
            f"{one['p_holm']:.2g}",
            one["num_pairs"],
            one["verdict"],
        ]
        for one in analysis["comparisons"]
    ]
    head = ["arms", "difference", "95 %", "probability of improvement", "p (Holm)", "pairs", "says"]
    return {"title": "Arms compared, paired over seeds", "head": head, "rows": rows}


def missing_table(design: Design, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The runs that have no numbers, and why."""
    found = [
        [
            *(name(design, row) for name in (arm_name, block_name)),
            *(row.get(key, "") for key in STANDING),
        ]
        for row in rows
        if row["state"] != "finished"
    ]
    head = ["arm", "set", "seed", "state", "why"]
    return {"title": "Runs without a result", "head": head, "rows": found}


def markdown_table(table: Table) -> Iterator[str]:
    """A table with its bars escaped."""
    yield "| " + " | ".join(table["head"]) + " |"
    yield "|" + "---|" * len(table["head"])
    for row in table["rows"]:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def number(value: float) -> str:
    """Four digits that count."""
    return f"{value:.{MOST_DIGITS}g}"
