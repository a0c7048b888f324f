"""`smidgen study`: plan, run, status, analyse and report of a recipe with a table [study]."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.options import answer, check_output_folder, log, quiet_stdout
from smidgen.errors import UsageError, closest, shown
from smidgen.evaluation.metric_table import aligned
from smidgen.files.checks import check_integer
from smidgen.files.settings import SWITCH
from smidgen.study.design import Design, read_design

LOOK_SECONDS = 2.0

DESCRIPTION = """Compare what a recipe with a table [study] names: factors and levels, cells, seeds.

  plan      what would be run, what each arm trains, which cells cannot be; --time: the hours
  run       do it: a folder each; finished runs are not repeated, the same command goes on
  time      the step of each arm, in rounds in which they take turns, and its operations
  status    how each run stands
  analyse   statistics of what is finished, in table.csv and analysis.json
  report    one page with tables, figures and what the numbers support

examples:
  smidgen study plan recipes/study-small.toml --time
  smidgen study run recipes/study-small.toml --workers 2
  smidgen study report recipes/study-small.toml"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Where the study lies, and how its runs are done."""

    output: Path | None = None
    """Folder of the study; none: the recipe's."""
    workers: int = 1
    """For run: how many runs at once; each takes its part of the threads and keeps its base."""
    part: str = "1/1"
    """For run: K/N, the K-th of N parts of the runs, for queues of several machines."""
    ray: str | None = None
    """For run: the address of a Ray cluster that shares the folders, or local."""

    def __post_init__(self) -> None:
        check_integer("workers", self.workers)
        _ = self.parts

    @property
    def parts(self) -> tuple[int, int]:
        """K and N. Raises: UsageError."""
        first, slash, second = self.part.partition("/")
        if not (slash and first.isdecimal() and second.isdecimal()) or not (
            1 <= int(first) <= int(second)
        ):
            raise UsageError(f'part is "{self.part}"; expected K/N, such as 2/8')
        return int(first), int(second)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySwitches:
    """How to run and how to answer."""

    watch: bool = dataclasses.field(default=False, metadata=SWITCH)
    """With status: look again every two seconds until nothing is left to do."""
    time: bool = dataclasses.field(default=False, metadata=SWITCH)
    """With plan: load bases and time a few steps of each arm."""
    retry: bool = dataclasses.field(default=False, metadata=SWITCH)
    """With run: do again what failed."""
    force: bool = dataclasses.field(default=False, metadata=SWITCH)
    """With run: do again what was made with other settings."""
    json: bool = dataclasses.field(default=False, metadata=SWITCH)
    """Answer with one JSON document on stdout and nothing else."""


def run(argv: Sequence[str]) -> None:
    """Choose the part, parse, do it, answer."""
    action, *rest = argv or ("",)
    if action in ("-h", "--help"):
        action, rest = "plan", ["--help"]
    if action.startswith("-"):
        raise UsageError(f'unknown flag "{shown(action)}": first what to do{closest("", ACTIONS)}')
    if action not in ACTIONS:
        raise UsageError(f'study does not know "{shown(action)}"{closest(action, ACTIONS)}')
    request = read_request(f"study {action}", rest)
    # the settings in the recipe are those of the study's runs, not of this verb
    groups, bare = {"study": StudyOptions}, dataclasses.replace(request, values={})
    parsed = parse(bare, groups, switches=StudySwitches, description=DESCRIPTION)
    options, switches = parsed["study"], parsed["switches"]
    if request.recipe is None:
        raise UsageError(f"which study? smidgen study {action} RECIPE.toml")
    design = read_design(request.recipe, options.output)
    check_output_folder(design.output)
    with quiet_stdout():
        document, lines, path = ACTIONS[action](design, options, switches)
    answer(document, lines, path, as_json=switches.json)


Answer = tuple[Mapping[str, Any], list[str], Path | None]


def _plan(design: Design, options: StudyOptions, switches: StudySwitches) -> Answer:
    from smidgen.study.planning import lines_of, plan_study

    plan = plan_study(design, timed=switches.time)
    return plan, list(lines_of(plan)), None


def _run(design: Design, options: StudyOptions, switches: StudySwitches) -> Answer:
    from smidgen.study.queue import run_all

    counts = run_all(
        design,
        workers=options.workers,
        part=options.parts,
        ray=options.ray,
        force=switches.force,
        retry=switches.retry,
        tell=log,
    )
    lines = [", ".join(f"{count} {state}" for state, count in counts.items())]
    if "waiting" in counts:
        lines.append("the same command goes on when the other parts have tuned their arms")
    return {"output": str(design.output), "states": counts}, lines, design.output


def _time(design: Design, options: StudyOptions, switches: StudySwitches) -> Answer:
    from smidgen.study.costs import TIMES
    from smidgen.study.timing import time_study

    found = time_study(design, tell=log)
    rows = [
        [arm, f"{one['step_ms'][0]:.4g} ms", f"{one['ratio'][0]:.2f} of {found['reference']}"]
        for arm, one in found["arms"].items()
    ]
    return found, aligned(rows), design.output / TIMES


def _status(design: Design, options: StudyOptions, switches: StudySwitches) -> Answer:
    from smidgen.study.runs import runs_of, states, tuning_of

    def look() -> list[dict[str, str]]:
        found = states([*tuning_of(design), *runs_of(design)])
        return [{"run": one.place, "state": state, "why": why} for one, state, why in found]

    rows = _watched(look) if switches.watch else look()
    lines = aligned([[shown(value) for value in row.values()] for row in rows])
    return {"output": str(design.output), "runs": rows}, lines, None


def _watched(look: Callable[[], list[dict[str, str]]]) -> list[dict[str, str]]:
    """The table on the terminal, drawn again until nothing is left to do; its last rows."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def table(rows: list[dict[str, str]]) -> Table:
        drawn = Table("run", "state", "why", box=None)
        for row in rows:
            drawn.add_row(*map(shown, row.values()))
        return drawn

    rows = look()
    with Live(table(rows), console=Console(stderr=True), auto_refresh=False) as live:
        while any(row["state"] in ("missing", "begun", "waiting") for row in rows):
            time.sleep(LOOK_SECONDS)
            rows = look()
            live.update(table(rows), refresh=True)
    return rows


def _analyse(design: Design, options: StudyOptions, switches: StudySwitches) -> Answer:
    from smidgen.study.analysis import ANALYSIS, analyse_study

    found = analyse_study(design)
    return found, [*found["says"], *found["notes"]], design.output / ANALYSIS


def _report(design: Design, options: StudyOptions, switches: StudySwitches) -> Answer:
    from smidgen.study.report import write_report

    path = write_report(design)
    return {"report": str(path)}, [], path


ACTIONS: Mapping[str, Callable[[Design, StudyOptions, StudySwitches], Answer]] = {
    "plan": _plan,
    "run": _run,
    "time": _time,
    "status": _status,
    "analyse": _analyse,
    "report": _report,
}
