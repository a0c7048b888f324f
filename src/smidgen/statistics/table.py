"""A table of measurements: a number and some levels in each row (N rows). Read from CSV, or made of
columns; nothing is analysed here.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from smidgen.errors import SmidgenError, UsageError, closest
from smidgen.files.names import excerpt
from smidgen.files.reading import in_one_line, read_bytes
from smidgen.statistics.config import AnovaConfig

MOST_BYTES = 2**24
LARGEST = 1e100  # of a number: squares of larger ones may be none
MOST_ENTRIES = 2**22  # of a model, rows times levels: half a minute


@dataclass(frozen=True)
class Levels:
    """A column of levels: their names, and which of them each row has."""

    names: tuple[str, ...]
    codes: np.ndarray  # (N,) int

    @classmethod
    def of(cls, texts: Sequence[str]) -> Levels:
        """The levels in the order in which they appear."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(texts))}
        return cls(tuple(numbers), np.array([numbers[text] for text in texts], dtype=int))

    def take(self, rows: np.ndarray) -> Levels:
        """The levels of some rows; those that no row has are left out."""
        kept, codes = np.unique(self.codes[rows], return_inverse=True)
        return Levels(tuple(self.names[number] for number in kept), codes)

    @property
    def indicators(self) -> np.ndarray:
        """(N, levels): 1 where the row has the level."""
        return np.eye(len(self.names))[self.codes]

    @property
    def counts(self) -> np.ndarray:
        """(levels,): how many rows have each."""
        return np.bincount(self.codes, minlength=len(self.names))


@dataclass(frozen=True, kw_only=True)
class Table:
    """The numbers of one metric with the levels of the factors and blocks."""

    name: str
    metric: str
    values: np.ndarray  # (N,)
    factors: Mapping[str, Levels]
    blocks: Mapping[str, Levels]

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> Table:
        """The table of some rows, given by a mask or by their numbers."""
        return replace(
            self,
            values=self.values[rows],
            factors={name: levels.take(rows) for name, levels in self.factors.items()},
            blocks={name: levels.take(rows) for name, levels in self.blocks.items()},
        )

    def cells(self, *names: str) -> Levels:
        """The combinations of the factors' levels that there are, as levels called `a:b`; without
        names those of all factors.
        """
        return crossed([self.factors[name] for name in names or self.factors])

    @property
    def block_groups(self) -> np.ndarray:
        """(N,): rows that are of the same blocks have the same number."""
        if not self.blocks:
            return np.zeros(len(self), dtype=int)
        return crossed(list(self.blocks.values())).codes


def crossed(columns: Sequence[Levels]) -> Levels:
    """The combinations of levels that there are, in the order in which they appear."""
    rows = zip(*([levels.names[code] for code in levels.codes] for levels in columns), strict=True)
    combinations = list(rows)
    numbers = {one: number for number, one in enumerate(dict.fromkeys(combinations))}
    codes = np.array([numbers[one] for one in combinations], dtype=int)
    return Levels(tuple(":".join(one) for one in numbers), codes)


def read_table(path: Path, config: AnovaConfig) -> Table:
    """The columns of a CSV file that a config names.

    Raises: SmidgenError, UsageError as `make_table`, or for a file that is no CSV table with a
        header.
    """
    return make_table(read_columns(path), config, path.name)


def read_columns(path: Path) -> dict[str, list[str]]:
    """All columns of a CSV file by the names in its first row.

    Raises: SmidgenError if it is no such table.
    """
    try:
        text = read_bytes(path, MOST_BYTES).decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except UnicodeDecodeError as error:
        raise SmidgenError(f"{path} is not UTF-8 text; save it as UTF-8") from error
    except csv.Error as error:
        raise SmidgenError(f"{path} is no CSV table: {in_one_line(error)}") from error
    if len(rows) < 2:
        raise SmidgenError(f"{path} has no rows; expected a header and a row for each measurement")
    header = [name.strip() for name in rows[0]]
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise SmidgenError(f'{path} has two columns "{excerpt(twice)}"; name each differently')
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise SmidgenError(
                f"{path}, row {number} has {len(row)} values; the header names {len(header)}"
            )
    columns = zip(*rows[1:], strict=True)
    return {
        name: [text.strip() for text in column]
        for name, column in zip(header, columns, strict=True)
    }


def make_table(columns: Mapping[str, Sequence[object]], config: AnovaConfig, name: str) -> Table:
    """The columns that a config names, checked; `name` is what messages call the table.

    Raises: UsageError for a column that is not there; SmidgenError for a number that is not finite,
        a level without a name, a factor or block with one level, or more than can be analysed.
    """
    kinds = {config.metric: "metric"}
    kinds |= dict.fromkeys(config.factor_names, "factor")
    kinds |= dict.fromkeys(config.block_names, "block")
    for column, kind in kinds.items():
        if column not in columns:
            near = closest(column, columns)
            raise UsageError(f'{name} has no column "{column}" for the {kind}{near}')
    lengths = {column: len(columns[column]) for column in kinds}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise SmidgenError(f"{name} has columns of {lengths} rows; expected as many in each, not 0")
    table = Table(
        name=name,
        metric=config.metric,
        values=_numbers(columns[config.metric], config.metric, name),
        factors={one: _levels(columns[one], one, name) for one in config.factor_names},
        blocks={one: _levels(columns[one], one, name) for one in config.block_names},
    )
    if np.ptp(table.values) == 0:
        raise SmidgenError(f"{config.metric} is the same in all rows of {name}; nothing differs")
    columns_of = (table.cells(), *table.factors.values(), *table.blocks.values())
    num_columns = sum(len(levels.names) for levels in columns_of)
    if len(table) * num_columns > MOST_ENTRIES:
        raise SmidgenError(
            f"{name} has {len(table):,} rows and {num_columns:,} levels and cells; rows times "
            f"these may be at most {MOST_ENTRIES:,}: average some rows, or name fewer factors"
        )
    return table


def _numbers(column: Sequence[object], metric: str, name: str) -> np.ndarray:
    values = np.empty(len(column))
    for row, given in enumerate(column):
        try:
            values[row] = float(str(given))
        except ValueError:
            values[row] = math.nan
        if not abs(values[row]) < LARGEST:
            raise SmidgenError(
                f'{name}, row {row + 2}: {metric} is "{excerpt(str(given))}"; expected a finite '
                "number in every row: measure it again or leave the row out"
            )
    return values


def _levels(column: Sequence[object], factor: str, name: str) -> Levels:
    texts = [str(given) for given in column]
    if "" in texts:
        raise SmidgenError(
            f"{name}, row {texts.index('') + 2}: {factor} is empty; name a level in every row"
        )
    if len(set(texts)) < 2:
        raise SmidgenError(
            f'{factor} has one level in {name}, "{excerpt(texts[0])}"; two or more are needed'
        )
    return Levels.of(texts)
