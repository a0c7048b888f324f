"""One page about a study: report.html, self-contained; report.md with figures/*.png; table.csv."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from smidgen.figures import png, svg
from smidgen.files.pages import png_address, rendered
from smidgen.files.run_files import RESULT
from smidgen.files.toml import toml
from smidgen.files.writing import whole_file, write_text
from smidgen.study.analysis import analyse_study, arm_name, block_name
from smidgen.study.design import Design
from smidgen.study.execute import SAMPLES
from smidgen.study.figures import Results, figures_of
from smidgen.study.results import rows_of
from smidgen.study.runs import runs_of, states
from smidgen.study.tables import markdown_table, tables_of

OF_TRAINING = ("seconds", "first_seconds")
PAGE, MARKDOWN, FIGURES = "report.html", "report.md", "figures"


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
    trained = [result.training for _, result in results]
    seconds = sum((one.get(name) or 0.0) for one in trained for name in OF_TRAINING)
    machines = Counter(machine_of(result.machine) for _, result in results)
    return {
        "title": Path(design.source).stem,
        "says": analysis["says"],
        "notes": analysis["notes"],
        "metric": analysis["metric"],
        "better": analysis["better"],
        "counts": Counter(row["state"] for row in rows),
        "tables": tables_of(design, analysis, rows, blocks),
        "protocol": protocol_of(design),
        "machines": [f"{name}: {count} runs" for name, count in machines.items()],
        "hours": seconds / 3600,
    }


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


def _write_png(figure: Figure, path: Path) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(png(figure))
