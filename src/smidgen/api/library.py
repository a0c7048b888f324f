"""`gate`, `orphans`: which deltas may be served, and which a new base leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from smidgen.api.evaluation import Drawn
from smidgen.core.delta import Delta
from smidgen.data.folder import Progress
from smidgen.errors import UsageError
from smidgen.files.settings import make
from smidgen.library.config import CopiesConfig, CopiesSampling, GateConfig, check_use
from smidgen.library.copies import find_copies
from smidgen.library.files import named
from smidgen.library.gate import judge
from smidgen.library.orphans import Fit, fits_of
from smidgen.library.record import Copies, Record, write_record
from smidgen.models.base import Base
from smidgen.models.pretrained import load_base
from smidgen.sampling.config import SamplingConfig


def gate(
    deltas: str | Path | Sequence[str | Path],
    *,
    require: str | Sequence[str] = (),
    most_copied: float | None = None,
    base: Base | str | Path | None = None,
    sampling: SamplingConfig | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Judge deltas before they are served, and write gate.json beside each: its content by the
    delta's name. `smidgen serve --gated` serves those that passed, as long as their files stay.

    `deltas`: runs, files of deltas, or folders of either. `require`: "METRIC=NUMBER", a floor of a
    metric of which more is better, else a ceiling, for the result.json beside each delta.
    `most_copied`: the largest share, by its 95 % interval, of images that may be copies of training
    pictures; these are drawn with `base` (None: as each run's recipe says) as `sampling` says.
    `settings`: those of CopiesConfig, such as data and features.

    Raises: UsageError for a setting that makes no sense, or a place without deltas. Whatever keeps
        a delta from being judged refuses it.
    """
    asked: dict[str, Any] = {
        "deltas": _paths(deltas),
        "require": [require] if isinstance(require, str) else require,
        "most_copied": most_copied,
    }
    config = make(GateConfig, asked)
    found = judge_all(
        config,
        make(CopiesConfig, settings),
        Drawn(base=base),
        sampling or CopiesSampling(),
        progress,
    )
    return {name: msgspec.to_builtins(record) for name, record in found.items()}


def judge_all(
    config: GateConfig,
    copies: CopiesConfig,
    drawn: Drawn,
    sampling: SamplingConfig,
    progress: Progress | None = None,
) -> dict[str, Record]:
    """`gate` with its settings as objects."""
    check_use(config, copies, drawn, sampling)
    if sampling.edits != "all" or sampling.numbers:
        raise UsageError(
            "edits and numbers draw a part of what would be served; leave them out of sampling"
        )
    count = sampling.num_images or CopiesSampling.num_images
    sampling = replace(sampling, num_images=count)
    bases = _Bases(drawn, copies, sampling)

    def find(path: Path, most: float) -> Copies:
        delta = Delta.load(path)
        return find_copies(bases.of(path, delta), delta, path, copies, sampling, most, progress)

    found: dict[str, Record] = {}
    for name, path in named(config.deltas):
        found[name] = judge(path, config, find)
        write_record(found[name], path)
    return found


def orphans(
    base: Base | str | Path, deltas: str | Path | Sequence[str | Path]
) -> list[dict[str, Any]]:
    """How deltas (runs, files, or folders of either) stand to `base`, such as a new version of
    theirs: `verdict` is fits, orphan (its `command` trains it again, from where it is), lost or
    unreadable, `reason` says why.

    Raises: UsageError for a place without deltas; as `load_base`.
    """
    loaded = base if isinstance(base, Base) else load_base(base)
    return fits_as_json(fits_of(loaded, named(_paths(deltas))))


def fits_as_json(fits: Sequence[Fit]) -> list[dict[str, Any]]:
    """As a document has them."""
    return [msgspec.to_builtins(one) for one in fits]


def _paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    return list(map(Path, [given] if isinstance(given, str | Path) else given))


class _Bases:
    """The base of each delta; the last one stays loaded for those that follow."""

    def __init__(self, drawn: Drawn, config: CopiesConfig, sampling: SamplingConfig) -> None:
        self._drawn, self._config, self._precision = drawn, config, sampling.precision
        self._last: tuple[Mapping[str, Any], Base] | None = None

    def of(self, path: Path, delta: Delta) -> Base:
        if isinstance(self._drawn.base, Base):
            return self._drawn.load(path, delta, self._config, self._precision)
        asked = self._drawn.asked(path, delta, self._config, self._precision)
        if self._last is None or self._last[0] != asked:
            self._last = None  # before another one takes memory
            self._last = asked, load_base(**asked)
        return self._last[1]
