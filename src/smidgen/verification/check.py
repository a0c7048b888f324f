"""One check of a base: what was asked, what came out, and why where that is not plain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "fail", "not possible"]
Verdict = Literal["pass", "fail", "incomplete"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """`found` says in a line what came out, or why nothing could; `facts` are numbers, as JSON."""

    name: str
    status: Status
    found: str
    facts: Mapping[str, Any] = field(default_factory=dict)


def verdict_of(checks: list[Check]) -> Verdict:
    """fail if one failed, incomplete if one was not possible, else pass. Files are recorded and not
    judged: that nobody published their hashes is no reason to doubt.
    """
    statuses = {check.status for check in checks}
    if "fail" in statuses:
        return "fail"
    judged = {check.status for check in checks if check.name != "files"}
    return "pass" if judged == {"pass"} else "incomplete"
