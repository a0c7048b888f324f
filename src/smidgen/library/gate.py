"""The gate that a delta passes before it is served: what its result must reach, and no copies of
training pictures. Its answer is gate.json beside the delta.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from smidgen.core.file import read_header
from smidgen.errors import SmidgenError
from smidgen.evaluation.metric_table import value_text
from smidgen.evaluation.schemas import MOST_RESULT_BYTES
from smidgen.files.reading import read_json, sha256_of
from smidgen.files.run_files import RESULT
from smidgen.library.config import GateConfig
from smidgen.library.files import beside
from smidgen.library.record import Copies, Record
from smidgen.library.requirements import Check, check_result


def judge(path: Path, config: GateConfig, find: Callable[[Path, float], Copies]) -> Record:
    """What the gate says of the delta in the file `path`; `find(path, most)` looks for copies,
    where that is asked. What cannot be told is a reason to refuse.
    """
    sha256 = sha256_of(path)
    try:
        read_header(path)
    except SmidgenError as error:
        return Record(delta_sha256=sha256, passed=False, reasons=[str(error)])
    reasons: list[str] = []
    checks: list[Check] = []
    protocol = copies = None
    if config.requirements:
        try:
            document = result_of(path, sha256)
            checks = check_result(config.requirements, document, RESULT)
            protocol = document["protocol"]
        except SmidgenError as error:
            reasons.append(str(error))
    if config.most_copied is not None:
        try:
            copies = find(path, config.most_copied)
        except SmidgenError as error:
            reasons.append(str(error))
    found = [*checks, *([] if copies is None else [copies])]
    reasons += [one.reason for one in found if one.reason is not None]
    return Record(
        delta_sha256=sha256,
        passed=not reasons,
        reasons=reasons,
        checks=checks,
        copies=copies,
        protocol=protocol,
    )


def result_of(path: Path, sha256: str) -> dict[str, Any]:
    """The result beside a delta, which must be that of this very file, all of it acting.

    Raises: SmidgenError otherwise, saying what to do.
    """
    place = beside(path, RESULT)
    if not place.is_file():
        raise SmidgenError(f"there is no {place.name}; evaluate it first (smidgen evaluate)")
    document = read_json(place, dict[str, Any], MOST_RESULT_BYTES, constants=True)
    protocol = document.get("protocol")
    sampling = protocol.get("sampling") if isinstance(protocol, Mapping) else None
    known = sampling if isinstance(sampling, Mapping) else {}
    if known.get("delta_sha256") != sha256:
        which = "another delta" if "delta_sha256" in known else "images that may be another delta's"
        raise SmidgenError(f"its {place.name} is of {which}; evaluate this one again")
    if known.get("edits", "all") != "all":
        raise SmidgenError(f"its {place.name} is of a part of it ({known['edits']}); evaluate all")
    return document


def row_of(record: Record) -> dict[str, str]:
    """What a table shows of a record: the verdict, a column for each number, and why."""
    row = {"gate": "passed" if record.passed else "refused"}
    times = Counter(check.metric for check in record.checks)
    for check in record.checks:
        known = check.value is not None
        several = times[check.metric] > 1
        name = f"{check.features}:{check.metric}" if several else check.metric
        row[name] = value_text(check.metric, check.value) if known else "unknown"
    if record.copies is not None:
        row["copied"] = f"{record.copies.share:.1%} (chance {record.copies.by_chance:.1%})"
    return row | {"why": "; ".join(record.reasons)}
