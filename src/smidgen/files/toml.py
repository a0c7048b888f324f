"""Values as TOML: one writer for the recipes of the command line and those that runs leave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

NONE = "none"  # stands for None, which TOML has not


def toml(value: Any) -> str:
    """A value as it stands behind `name = `; what is no number, flag or sequence becomes text."""
    if value is None:
        value = NONE
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(int(value) if isinstance(value, int) else float(value))  # not NumPy's form
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    # JSON's escapes are TOML's, but for DEL, which only JSON leaves as it is
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007F")
