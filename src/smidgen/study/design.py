"""What a study compares: the table [study] of a recipe as a `Design`, and the cells that it has.

A factor is a list of values of the setting of its name, or a table of named levels, each with the
settings that make it; a cell is a level of each factor. Nothing is trained or loaded here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from smidgen.errors import UsageError, closest
from smidgen.files.checks import check_integer
from smidgen.files.reading import Unreadable, fit
from smidgen.files.settings import read_recipe
from smidgen.files.toml import toml

STUDY = "study"
VALIDATION_LOSS = "validation_loss"
DRAWN = "sampling."  # before settings that say how samples are drawn, and not what is trained
FIRST = "init_from."  # before settings of a run from whose delta this one begins
OF_ANY_NUMBER = ("kid", "class_agreement")  # metrics whose mean does not depend on how many images
MORE = "+"  # `"gammas+" = ["qkv"]`: factors that each give a part of one list

Scalar = str | int | float | bool | list[str | int | float]
Settings = dict[str, Scalar]
Level = dict[str, Scalar | Settings]  # a table has the options of one method of a combination
Cell = Mapping[str, str]  # the label of a level of each factor


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A grid of one setting, tried alike for every arm; what is best is what the arm runs with.

    A level that has the setting itself keeps it: nothing is tried for its arms.

    `at` says at which levels of the blocks it is tried, by default the first of each; `seed` is
    that of the runs that try, by default the first. `metric` must become small, unless `highest`.
    """

    values: list[Scalar]
    setting: str = "lr"
    metric: str = VALIDATION_LOSS
    highest: bool = False
    at: dict[str, str] = {}
    seed: int | None = None


class StudyTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [study] as TOML has it. `metric` is what is analysed, `also` names numbers that
    stand beside it in the table of the arms, baselines too.

    `before`: the delta that a run begins with is measured as its own is, as `<metric>_before`;
    `of_data`: so are as many images of its data, as `<metric>_of_data`.
    `curve`: so are those that it keeps on the way, by `metric` of `curve_images` where that is
    given. `keep_samples`: what is drawn of the two lies in the run's folder.
    `pretraining` has the images that a base was trained on, by its name and their size in pixels.
    """

    factors: dict[str, list[Scalar] | dict[str, Level]]
    seeds: list[int] = msgspec.field(default_factory=lambda: [0])
    blocks: list[str] = []
    design: Literal["full", "half", "listed"] = "full"
    cells: list[dict[str, Scalar]] = []
    metric: str = "fd"
    better: Literal["low", "high"] = "low"
    also: list[str] = []
    against: str | None = None
    interactions: list[str] = []
    before: bool = False
    of_data: bool = False
    curve: bool = False
    curve_images: int | None = None
    keep_samples: bool = False
    pretraining: dict[str, dict[str, int]] = {}
    tune: Tuning | None = None
    sampling: Settings = {}
    evaluation: Settings = {}


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """A study as its recipe says it.

    `fixed` are the settings that all runs share, `factors` the settings of each level by factor and
    label. Of two-level factors "half" keeps the cells with an even number of second levels: the
    half fraction whose defining relation is the product of all of them.
    """

    source: str
    output: Path
    fixed: Mapping[str, Any]
    factors: Mapping[str, Mapping[str, Settings]]
    table: StudyTable

    @property
    def arms(self) -> tuple[str, ...]:
        """The factors that are compared: those that are no blocks."""
        return tuple(name for name in self.factors if name not in self.table.blocks)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The factors that change only how samples are drawn: their levels share a training."""
        return tuple(
            name
            for name, levels in self.factors.items()
            if any(levels.values())
            and all(key.startswith(DRAWN) for settings in levels.values() for key in settings)
        )

    def cells(self) -> list[Cell]:
        """All cells of the design, in the order of the recipe."""
        if self.table.design == "listed":
            return [cell for listed in self.table.cells for cell in self._all_of(listed)]
        every = itertools.product(*(self.factors.values()))
        cells: list[Cell] = [dict(zip(self.factors, labels, strict=True)) for labels in every]
        return cells if self.table.design == "full" else [c for c in cells if self._is_even(c)]

    def _all_of(self, listed: Mapping[str, Scalar]) -> Iterator[Cell]:
        """The cells that a listed one means: at every level of the blocks that it leaves out."""
        left = [name for name in self.factors if name not in listed]
        for labels in itertools.product(*(self.factors[name] for name in left)):
            found = dict(zip(left, labels, strict=True))
            found |= {name: label_of(value) for name, value in listed.items()}
            yield {name: found[name] for name in self.factors}

    def _is_even(self, cell: Cell) -> bool:
        second = [
            label == list(self.factors[name])[1]
            for name, label in cell.items()
            if name in self.arms and len(self.factors[name]) == 2
        ]
        return sum(second) % 2 == 0

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All settings of a cell; those of a level stand above the fixed ones, and what a level
        has under a name with `MORE` behind it is put to the list that is there.
        """
        values = dict(self.fixed)
        for name, label in cell.items():
            for key, value in self.factors[name][label].items():
                plain = key.removesuffix(MORE)
                if plain == key:
                    values[key] = value
                else:
                    values[plain] = [*_listed(values.get(plain, [])), *_listed(value)]
        return values

    def arm_of(self, cell: Cell) -> Cell:
        """The levels of what is compared."""
        return {name: label for name, label in cell.items() if name in self.arms}

    def is_tuned(self, cell: Cell) -> bool:
        """Whether a value is tried for the arm of a cell: none of its levels has one of its own."""
        tune = self.table.tune
        levels = (self.factors[name][label] for name, label in cell.items())
        return tune is not None and not any(tune.setting in settings for settings in levels)

    def tuned_at(self, cell: Cell) -> dict[str, str]:
        """The cell in which the arm of this one is tuned."""
        assert self.table.tune is not None, "nothing is tuned"
        alike = {name: next(iter(self.factors[name])) for name in (*self.drawn, *self.table.blocks)}
        return {**self.arm_of(cell), **alike, **self.table.tune.at}


def read_design(path: Path, output: Path | None = None) -> Design:
    """The study in a recipe; `output` stands above the recipe's.

    Raises: UsageError for a recipe without a study, or one whose parts do not fit, naming them.
    """
    values = read_recipe(path)
    if STUDY not in values:
        raise UsageError(f"{path} has no table [{STUDY}]: it describes one run (smidgen train)")
    try:
        table = fit(values.pop(STUDY), StudyTable)
    except Unreadable as error:
        raise UsageError(f"{path}: [{STUDY}]: {error.reason}") from error
    given = output or values.pop("output", None)
    values.pop("output", None)
    if not isinstance(given, str | Path):
        raise UsageError(f"{path}: a study needs a folder; give output")
    factors = {name: _levels(name, levels, str(path)) for name, levels in table.factors.items()}
    design = Design(
        source=path.as_posix(), output=Path(given), fixed=values, factors=factors, table=table
    )
    for problem in _problems(design):
        raise UsageError(f"{path}: [{STUDY}]: {problem}")
    return design


def label_of(value: Scalar) -> str:
    """How a level of a plain list is called."""
    return value if isinstance(value, str) else toml(value)


def _levels(
    name: str, levels: list[Scalar] | Mapping[str, Level], source: str
) -> dict[str, Settings]:
    if isinstance(levels, Mapping):
        return {label: dict(_dotted(level)) for label, level in levels.items()}
    found = {label_of(value): {name.replace("-", "_"): value} for value in levels}
    if len(found) < len(levels):
        raise UsageError(f"{source}: [{STUDY}]: factor {name} names a level twice")
    return found


def _dotted(level: Level, prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in level.items():
        name = prefix + key.replace("-", "_")
        if isinstance(value, dict):
            yield from _dotted({**value}, f"{name}.")
        else:
            yield name, value


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _problems(design: Design) -> Iterator[str]:
    """What does not fit together, each in a line."""
    table, factors = design.table, design.factors
    if not factors:
        yield "no factors: name what is compared under [study.factors]"
    for name, levels in factors.items():
        if len(levels) < 2 and name not in table.blocks:
            yield f"factor {name} has {len(levels)} level; two or more can be compared"
        if not levels:
            yield f"factor {name} has no levels"
    for name in table.blocks:
        if name not in factors:
            yield f'unknown block "{name}"{closest(name, factors)}'
    if not table.seeds or len(set(table.seeds)) < len(table.seeds):
        yield "seeds are empty or named twice; give each once"
    for seed in table.seeds:
        check_integer("seeds", seed, least=0)
    if (table.design == "listed") != bool(table.cells):
        yield 'cells are for design = "listed", which needs some'
    for cell in table.cells:
        if not set(design.arms) <= set(cell):
            yield f"a cell names {', '.join(cell)}; expected a level of each factor but blocks"
        for name, value in cell.items():
            if name not in factors:
                yield f'a cell names "{name}", which is no factor{closest(name, factors)}'
                continue
            label = label_of(value)
            if label not in factors[name]:
                yield f'factor {name} has no level "{label}"{closest(label, factors[name])}'
    if table.design == "half" and any(len(factors[name]) != 2 for name in design.arms):
        yield 'design = "half" is for factors of two levels'
    if table.against is not None:
        yield from _problems_of_against(design, table.against)
    if table.curve_images is not None:
        check_integer("curve_images", table.curve_images)
        if not table.curve:
            yield "curve_images is of no use without a curve; give curve = true, or leave it out"
        if table.metric not in OF_ANY_NUMBER:
            yield (
                f"curve_images is for a metric that any number of images may measure "
                f"({', '.join(OF_ANY_NUMBER)}), and {table.metric} is higher or lower for few; "
                "leave it out"
            )
    for base, images in table.pretraining.items():
        for size, count in images.items():
            check_integer(f"pretraining.{base}, a size", int(size) if size.isdecimal() else size)
            check_integer(f"pretraining.{base}.{size}", count, least=0)
    if table.tune is not None:
        if len(table.tune.values) < 2:
            yield "tune has fewer than two values; leave it out"
        for name, label in table.tune.at.items():
            if name not in table.blocks:
                yield f'tune.at names "{name}", which is no block'
            elif label not in factors[name]:
                yield f'tune.at: {name} has no level "{label}"{closest(label, factors[name])}'


def _problems_of_against(design: Design, against: str) -> Iterator[str]:
    if len(design.arms) != 1:
        yield "against names an arm where one factor is compared; here are several"
        return
    (name,) = design.arms
    if against not in design.factors[name]:
        near = closest(against, design.factors[name])
        yield f'against is "{against}", no level of {name}{near}'
