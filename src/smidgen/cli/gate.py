"""`smidgen gate`: which deltas may be served."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec

from smidgen.cli.arguments import parse, read_request
from smidgen.cli.evaluate import DrawnOptions
from smidgen.cli.options import Switches, answer, answer_dry_run, check_images, quiet_stdout
from smidgen.errors import SmidgenError
from smidgen.evaluation.metric_table import aligned
from smidgen.library.config import CopiesConfig, CopiesSampling, GateConfig, check_use
from smidgen.library.files import named

DESCRIPTION = """Judge deltas before they are served, and write gate.json beside each.

--require asks the result.json that evaluate left beside a delta; --most-copied draws images and
looks for copies of the training pictures among them, the nearest pairs in copies.png. What cannot
be judged is refused. smidgen serve --gated serves what passed, as long as its file stays the same.

examples:
  smidgen gate library --require class_agreement=0.8 kid=0.02
  smidgen gate runs/greek --most-copied 0.1 --num-images 512 --steps 20 --sampler dpm++"""
WHY = "why"
GROUPS: Mapping[str, type] = {
    "gate": GateConfig,
    "copies": CopiesConfig,
    "drawn": DrawnOptions,
    "sampling": CopiesSampling,
}


def run(argv: Sequence[str]) -> None:
    """Parse, check, judge, answer. Raises: SmidgenError if a delta is refused, with the others."""
    parsed = parse(
        read_request("gate", argv, positional="deltas"),
        GROUPS,
        switches=Switches,
        description=DESCRIPTION,
    )
    config, copies, switches = parsed["gate"], parsed["copies"], parsed["switches"]
    check_use(config, copies, parsed["drawn"], parsed["sampling"])
    if copies.data is not None:
        check_images(copies.data, copies.layout, copies.split)
    listed = [name for name, _ in named(config.deltas)]
    if switches.dry_run:
        configs = [parsed[name] for name in GROUPS]
        answer_dry_run(configs, {"judged": listed}, as_json=switches.json)
        return
    from smidgen.api.evaluation import Drawn
    from smidgen.api.library import judge_all
    from smidgen.library.gate import row_of
    from smidgen.progress import counting_bar

    drawn = Drawn(**vars(parsed["drawn"]))
    sampling = dataclasses.replace(parsed["sampling"], batch_size=copies.batch_size)
    with quiet_stdout(), counting_bar("drawing", progress=True) as progress:
        found = judge_all(config, copies, drawn, sampling, progress)
    document = {name: msgspec.to_builtins(record) for name, record in found.items()}
    rows = {name: row_of(record) for name, record in found.items()}
    answer(document, lines_of(rows), None, as_json=switches.json)
    refused = [name for name, record in found.items() if not record.passed]
    if refused:
        names = ", ".join(refused)
        raise SmidgenError(f"{len(refused)} of {len(found)} deltas are refused: {names}")


def lines_of(rows: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each delta; why it is refused comes last."""
    names = dict.fromkeys(name for row in rows.values() for name in row if name != WHY)
    columns = [*names, WHY]
    table = [[delta, *(row.get(name, "") for name in columns)] for delta, row in rows.items()]
    return aligned([["delta", *columns], *table])
