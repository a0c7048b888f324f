"""One page about a study: report.html, self-contained; report.md with figures/*.png; table.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from smidgen.figures import png, svg
from smidgen.files.pages import png_address, rendered
from smidgen.files.toml import toml
from smidgen.files.writing import whole_file, write_text
from smidgen.study.analysis import analyse_study, arm_name, block_name
from smidgen.study.design import Design
from smidgen.study.execute import SAMPLES
from smidgen.study.figures import Results, figures_of
from smidgen.study.results import finished, rows_of
from smidgen.study.runs import RESULT, runs_of, states

PAGE, MARKDOWN, FIGURES = "report.html", "report.md", "figures"
MOST_DIGITS = 4
STANDING = ("seed", "state", "why")


def write_report(design: Design) -> Path:
    """Writes the page and what it is made of; its path.

    Raises: as `analyse_study`.
    """
    analysis, rows = analyse_study(design), rows_of(design)
    results = list(results_of(design))
    drawn = figures_of(design, analysis, rows, results)
    facts = facts_of(design, analysis, rows, results)
    shown = {name: (words, svg(figure)) for name, (words, figure) in drawn.items()}
    page = rendered(
        "smidgen.study",
        "report.html.jinja",
        {**facts, "figures": shown, "grids": list(grids(design, embedded=True))},
    )
    write_text(page, design.output / PAGE)
    for name, (_, figure) in drawn.items():
        _write_png(figure, design.output / FIGURES / f"{name}.png")
    write_text(markdown(facts, drawn, design), design.output / MARKDOWN)
    return design.output / PAGE


def results_of(design: Design) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """The cell and the result of each run that is finished."""
    for run, state, _ in states(runs_of(design)):
        found = run.kept(RESULT) if state == "finished" else None
        if found is not None:
            yield run.cell, found


def facts_of(
    design: Design,
    analysis: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    results: Results,
) -> dict[str, Any]:
    """All that the page says in words and tables."""
    blocks = list(dict.fromkeys(block_name(design, row) for row in rows))
    seconds = sum(result.training.get("seconds") or 0.0 for _, result in results)
    machines = Counter(machine_of(result.machine) for _, result in results)
    return {
        "title": Path(design.source).stem,
        "says": analysis["says"],
        "notes": analysis["notes"],
        "metric": analysis["metric"],
        "better": analysis["better"],
        "counts": Counter(row["state"] for row in rows),
        "tables": [
            main_table(design, analysis, blocks),
            block_table(design, rows, blocks),
            *effect_tables(analysis),
            comparison_table(analysis),
            missing_table(design, rows),
        ],
        "protocol": protocol_of(design),
        "machines": [f"{name}: {count} runs" for name, count in machines.items()],
        "hours": seconds / 3600,
    }


Table = dict[str, Any]  # title, head, rows


def main_table(design: Design, analysis: Mapping[str, Any], blocks: Sequence[str]) -> Table:
    """DiffFit's Table 1: an arm a row, a block a column, the mean over them with its interval."""
    tune = design.table.tune
    costs = ["parameters", "of the base", "training, s"]
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
        seconds = f"{arm['seconds']:.0f}" if "seconds" in arm else ""
        tuned = [toml(arm.get(tune.setting))] if tune else []
        counts = [f"{arm.get('trainable', 0):,.0f}", share, seconds]
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


def with_spread(mean: float, interval: tuple[float, float] | None) -> str:
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


def protocol_of(design: Design) -> list[tuple[str, str]]:
    """What all runs share, as the recipe has it."""
    table = design.table
    shared = {name: toml(value) for name, value in design.fixed.items()}
    shared |= {f"sampling {name}": toml(value) for name, value in table.sampling.items()}
    shared |= {f"evaluation {name}": toml(value) for name, value in table.evaluation.items()}
    shared["seeds"] = toml(table.seeds)
    if table.tune is not None:
        shared[f"tuned: {table.tune.setting}"] = f"{toml(table.tune.values)} by {table.tune.metric}"
    return list(shared.items())


def machine_of(machine: Mapping[str, Any]) -> str:
    """A line about where a run was made."""
    versions = ", ".join(f"{name} {one}" for name, one in machine.get("versions", {}).items())
    where = [machine.get("processor"), f"{machine.get('cores')} cores"]
    where += machine.get("accelerators", ())
    return f"{', '.join(str(one) for one in where if one)} ({versions})"


def grids(design: Design, *, embedded: bool) -> Iterator[dict[str, Any]]:
    """The samples of each block: an arm a row, a column one noise; of the first seed that is done.
    `embedded`: as addresses that hold the picture, else as paths below the study.
    """
    by_block: dict[str, dict[str, str]] = {}
    for run in runs_of(design):
        path = run.folder / SAMPLES
        if not path.is_file():
            continue
        arms, arm = (
            by_block.setdefault(block_name(design, run.cell), {}),
            arm_name(design, run.cell),
        )
        if arm in arms:
            continue
        arms[arm] = path.relative_to(design.output).as_posix()
        if embedded:
            arms[arm] = png_address(path)
    for block, arms in by_block.items():
        yield {"block": block, "arms": list(arms.items())}


def markdown(facts: Mapping[str, Any], drawn: Mapping[str, Any], design: Design) -> str:
    """The same as Markdown, with the figures as files beside it."""
    lines = [f"# {facts['title']}", "", *(f"- {one}" for one in facts["says"]), ""]
    for table in facts["tables"]:
        if table["rows"]:
            lines += [f"## {table['title']}", "", *markdown_table(table), ""]
    for name, (words, _) in drawn.items():
        lines += [f"![{words}]({FIGURES}/{name}.png)", ""]
    for grid in grids(design, embedded=False):
        lines += [f"## Samples: {grid['block']}", "", "| arm | samples |", "|---|---|"]
        lines += [f"| {arm} | ![{arm}]({path}) |" for arm, path in grid["arms"]]
        lines.append("")
    lines += ["## Protocol", "", *(f"- {name}: {value}" for name, value in facts["protocol"]), ""]
    lines += [f"- {one}" for one in facts["machines"]]
    lines += [f"- {facts['hours']:.2f} hours of training", *(f"- {one}" for one in facts["notes"])]
    return "\n".join(lines) + "\n"


def markdown_table(table: Table) -> Iterator[str]:
    """A table with its bars escaped."""
    yield "| " + " | ".join(table["head"]) + " |"
    yield "|" + "---|" * len(table["head"])
    for row in table["rows"]:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"


def number(value: float) -> str:
    """Four digits that count."""
    return f"{value:.{MOST_DIGITS}g}"


def _write_png(figure: Figure, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(png(figure))
