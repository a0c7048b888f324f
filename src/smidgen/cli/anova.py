"""`smidgen anova`: the analysis of variance of a table as text; statistics/anova.py makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import Switches, answer, answer_dry_run, check_file, check_output_file
from smidgen.errors import UsageError
from smidgen.evaluation.metric_table import aligned
from smidgen.files.writing import whole_file
from smidgen.statistics.config import AnovaConfig
from smidgen.statistics.table import read_table

DESCRIPTION = """Say which factors of a table of measurements make a difference, and how much of it.

The table is a CSV file with a header and a row for each measurement.

examples:
  smidgen anova pairs.csv --metric clip_i --factors input,output --blocks subject
  smidgen anova arms.csv --metric fd --factors method,task --interaction method:task --json
  smidgen anova arms.csv --metric fd --factors method --plot residuals.svg"""

SIZES = {"eta_squared": "eta²", "partial_eta_squared": "partial eta²", "omega_squared": "omega²"}
HEAD = ["df", "F", "p", "permuted", *SIZES.values()]
SIGNIFICANT = 0.05  # only such pairs of levels are shown; --json has all


PICTURES = (".png", ".svg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOptions:
    """The table, and a picture of it."""

    table: Path
    """A CSV file with a header."""
    plot: Path | None = None
    """Draw the residuals against fitted values and normal quantiles: FILE.png or FILE.svg."""

    def __post_init__(self) -> None:
        if self.plot is not None and self.plot.suffix not in PICTURES:
            raise UsageError(f"plot is {self.plot}; expected a file that ends in .png or .svg")


def run(argv: Sequence[str]) -> None:
    """Parse, read, analyse, answer."""
    parsed = parse(
        read_request("anova", argv, positional="table"),
        {"table": TableOptions, "analysis": AnovaConfig},
        switches=Switches,
        description=DESCRIPTION,
    )
    options, config, switches = parsed["table"], parsed["analysis"], parsed["switches"]
    check_file(options.table, "table")
    if options.plot is not None:
        check_output_file(options.plot)
    table = read_table(options.table, config)
    from smidgen.statistics.anova import analyse, design_of  # scipy takes a second

    if switches.dry_run:
        design = design_of(table, config)
        facts = {"rows": len(table), "connected_rows": len(design.connected)}
        answer_dry_run([options, config], facts, as_json=switches.json)
        return
    document = analyse(table, config)
    if options.plot is not None:
        _draw(document, options.plot)
    answer(document, list(anova_lines(document)), options.plot, as_json=switches.json)


def _draw(document: Mapping[str, Any], path: Path) -> None:
    from smidgen.figures import png, svg
    from smidgen.study.figures import residuals

    _, figure = residuals(document)
    with whole_file(path) as partial:
        partial.write_bytes(png(figure) if path.suffix == ".png" else svg(figure).encode())


def anova_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """The document as tables, and its notes last."""
    beside = f", beside {', '.join(document['blocks'])}" if document["blocks"] else ""
    yield f"{document['metric']} of {document['rows']} rows in {document['table']}{beside}"
    connected = document["connected"]
    where = f"{connected['rows']} rows in {connected['cells']} connected cells"
    yield from _effect_lines(f"terms, {where}", document["terms"])
    yield from _effect_lines("one-way, all rows", document["one_way"])
    if document["aliased"]:
        yield "aliased, cannot be told apart"
        yield from (f"  {text}" for text in document["aliased"])
    if document["contrasts"]:
        rows = [
            [f"  {one['cell']} less {one['against']}", *_difference(one, "p_holm")]
            for one in document["contrasts"]
        ]
        yield from aligned([["contrasts", "difference", "95 %", "p (Holm)"], *rows])
    for name, pairs in document["tukey"].items():
        yield from _tukey_lines(name, pairs)
    yield from _assumption_lines(document)
    yield from (f"note: {text}" for text in document["notes"])


def _effect_lines(title: str, effects: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [[title, *HEAD]] if effects else []
    for name, one in effects.items():
        sizes = [f"{one[size]:.3f} {_interval(one[f'{size}_interval'], '.3f')}" for size in SIZES]
        permuted = "" if one["permutation_p"] is None else _p(one["permutation_p"])
        df = f"{one['df']}, {one['df_residual']}"
        rows.append([f"  {name}", df, f"{one['F']:.2f}", _p(one["p"]), permuted, *sizes])
    return aligned(rows)


def _tukey_lines(name: str, pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The pairs of levels that differ, and how many there are."""
    different = [one for one in pairs if one["p"] < SIGNIFICANT]
    title = f"Tukey, {name}: {len(different)} of {len(pairs)} pairs differ"
    rows = [[f"  {' less '.join(one['levels'])}", *_difference(one, "p")] for one in different]
    return ([title] if pairs else []) + aligned(rows)


def _difference(one: Mapping[str, Any], p: str) -> list[str]:
    return [f"{one['difference']:+.4g}", _interval(one["interval"], "+.4g"), _p(one[p])]


def _assumption_lines(document: Mapping[str, Any]) -> list[str]:
    found = document["assumptions"]
    rows = [
        [
            f"  Kruskal-Wallis, {name}: levels rank alike",
            f"H = {one['statistic']:.2f}",
            _p(one["p"]),
        ]
        for name, one in document["kruskal"].items()
    ]
    rows += [
        [f"  Levene, {name}: one variance", f"W = {one['statistic']:.2f}", _p(one["p"])]
        for name, one in found["levene"].items()
        if one is not None
    ]
    if found["shapiro"] is not None:
        one = found["shapiro"]
        rows.append(
            ["  Shapiro-Wilk: normal residuals", f"W = {one['statistic']:.3f}", _p(one["p"])]
        )
    return aligned([["beside these", "", "p"], *rows])


def _interval(bounds: Sequence[float], form: str) -> str:
    return f"[{bounds[0]:{form}}, {bounds[1]:{form}}]"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
