"""What is asked of a table. Nothing heavy is imported here, so that the command line checks it
before scipy loads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from smidgen.errors import UsageError
from smidgen.evaluation.names import split_names


@dataclass(frozen=True, kw_only=True)
class AnovaConfig:
    """What is analysed, and by what. Raises: UsageError for a request that makes no sense."""

    metric: str
    """The column of the numbers."""
    factors: str | tuple[str, ...]
    """Columns whose effects are asked for, with commas."""
    blocks: str | tuple[str, ...] | None = None
    """Columns that make a difference too and are not asked about, with commas, such as subject or
    data set: every model has them."""
    interaction: str | tuple[str, ...] | None = None
    """Pairs of factors as a:b, with commas: whether the effect of one depends on the other. Needs
    two rows or more in every cell."""
    against: str | tuple[str, ...] | None = None
    """Cells that those which share no level with the rest are compared with, each as its levels in
    the order of the factors, with a colon between: CA_out:FFN_in; none: the mean of the rest."""

    def __post_init__(self) -> None:
        if not self.factor_names:
            raise UsageError("no factor is named; give one or more columns to --factors")
        columns = (self.metric, *self.factor_names, *self.block_names)
        if twice := [name for name, count in Counter(columns).items() if count > 1]:
            raise UsageError(f'column "{twice[0]}" is named twice; give each one thing to be')
        for pair in self.pairs:
            if len(pair) != 2 or len(set(pair) & set(self.factor_names)) != 2:
                raise UsageError(
                    f'interaction is "{":".join(pair)}"; expected two of the factors as a:b, of: '
                    f"{', '.join(self.factor_names)}"
                )

    @property
    def factor_names(self) -> list[str]:
        return split_names(self.factors)

    @property
    def block_names(self) -> list[str]:
        return split_names(self.blocks or ())

    @property
    def pairs(self) -> list[tuple[str, ...]]:
        """The factors of each interaction."""
        return [tuple(text.split(":")) for text in split_names(self.interaction or ())]

    @property
    def against_names(self) -> list[str]:
        return split_names(self.against or ())
