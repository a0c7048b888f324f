"""`anova`: which factors of a table of measurements make a difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smidgen.files.settings import make
from smidgen.statistics.config import AnovaConfig


def anova(
    table: str | Path | Mapping[str, Sequence[object]],
    *,
    metric: str,
    factors: str | Sequence[str],
    **settings: Any,
) -> dict[str, Any]:
    """The analysis of variance of a CSV file, or of columns by name, as `smidgen anova --json` has
    it (docs/statistics.md). `settings`: blocks, interaction and against of AnovaConfig.

    Raises: UsageError for a setting that makes no sense, a column or a cell that is not there, or
        an interaction without replicates; SmidgenError for a table that cannot be analysed.
    """
    from smidgen.statistics.anova import anova as analysis  # scipy.stats takes a second

    config = make(AnovaConfig, {"metric": metric, "factors": factors, **settings})
    return analysis(Path(table) if isinstance(table, str) else table, config)
