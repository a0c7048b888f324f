"""The deltas of a folder by name, and what a request means by `model`.

    greek                 a delta
    greek:0.7             at strength 0.7
    greek:0.7+thai:0.3    a weighted sum of what they do

A name is looked up among those that the folder was found to hold; it never becomes a path.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from smidgen.core.arithmetic import base_rows_of, combine, scaled
from smidgen.core.delta import Delta, read_header
from smidgen.core.fingerprint import fingerprints_match
from smidgen.errors import SmidgenError, UsageError, closest, shown
from smidgen.files.reading import Unreadable, read_json, sha256_of
from smidgen.files.run_files import RESULT
from smidgen.library.files import GATE, beside, deltas_in
from smidgen.library.record import refusal
from smidgen.models.base import Base
from smidgen.serving.pools import Key

MARKS = "+:"  # between the parts of a model's name
MOST_PARTS = 8
GRIDS = ("grid.png", "samples.png")
MOST_RESULT_BYTES = 2**20
MOST_NUMBERS = 12  # of a run, on the page
MOST_BYTES = 2**32  # of one file; the largest deltas, copies of all weights, are a base's size

logger = logging.getLogger(__name__)


State = tuple[int, int, int]


class _Result(msgspec.Struct):
    """What is read of a result.json."""

    metrics: dict[str, Any] = {}


class UnknownModel(SmidgenError):
    """No delta of this name is here."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A delta file that can be served; `state` tells when the file becomes another one, `gate` the
    same of its gate.json, where that is asked (None: there is none, or it is not).
    """

    name: str
    path: Path
    state: State
    gate: State | None = None
    header: dict[str, Any]

    @property
    def grid(self) -> Path | None:
        """A picture of its samples, beside it in its run."""
        run = self.path.parent if self.path.parent.name == self.name else None
        found = [] if run is None else [run / name for name in GRIDS if (run / name).is_file()]
        return found[0] if found else None

    def numbers(self) -> dict[str, float]:
        """What its run's result.json has measured; nothing of a file that is none."""
        run = self.path.parent
        if run.name != self.name:
            return {}
        try:
            metrics = read_json(run / RESULT, _Result, MOST_RESULT_BYTES).metrics
        except Unreadable:
            return {}
        plain = {k: v for k, v in metrics.items() if isinstance(v, float) and math.isfinite(v)}
        return dict(list(plain.items())[:MOST_NUMBERS])

    @property
    def created(self) -> int:
        """When the file was written, in seconds since 1970."""
        return self.state[0] // 10**9


class Library:
    """The deltas of `folder` that fit `base` and, if it is `gated`, have passed the gate; the last
    `kept` that were read stay in memory.
    """

    def __init__(self, folder: Path, base: Base, kept: int, *, gated: bool = False) -> None:
        self._folder, self._base, self._kept, self._gated = folder, base, kept, gated
        # of a local file or folder its path is nobody's business
        self.base_name = Path(base.name).name if Path(base.name).exists() else base.name
        self._entries: dict[str, Entry] = {}
        self._refused: dict[Path, tuple[State, State | None]] = {}
        self._stopped: set[str] = set()  # at the gate
        self._deltas: OrderedDict[Key, Delta] = OrderedDict()
        self._hashes: dict[Path, tuple[State, str]] = {}
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Look at the folder again."""
        with self._lock:
            found: dict[str, Entry] = {}
            listed = deltas_in(self._folder)
            self._stopped &= set(dict(listed))
            for name, path in listed:
                entry = self._entry(name, path)
                if entry is not None and name in found:
                    logger.warning("%s: %s is the name of another delta", path, name)
                elif entry is not None:
                    found[name] = entry
            self._entries = found

    def entries(self) -> list[Entry]:
        """All that can be served, by name."""
        self.refresh()
        found = self._entries  # another thread may put others in its place
        return [found[name] for name in sorted(found)]

    def find(self, model: str) -> tuple[Key | None, Delta | None]:
        """The delta that a request names, and its key; None twice for the base.

        Raises: UnknownModel for a name that is not here; UsageError for a weight that is no number;
            SmidgenError for deltas that have no sum, or no strength, or a file that is damaged.
        """
        if model == self.base_name:
            return None, None
        parts = parsed(model)
        entries = [self.entry(name) for name, _ in parts]
        weights = [weight for _, weight in parts]
        key = tuple((e.name, e.state, w) for e, w in zip(entries, weights, strict=True))
        with self._lock:
            known = self._deltas.get(key)
            if known is not None:
                self._deltas.move_to_end(key)
                return key, known
        delta = self._made(entries, weights)
        with self._lock:
            self._deltas[key] = delta
            while len(self._deltas) > self._kept:
                self._deltas.popitem(last=False)
        return key, delta

    def sha256(self, model: str) -> str | None:
        """Of the file of a delta; of a strength or a sum what no file has; None of the base.

        Raises: as `find`.
        """
        if model == self.base_name:
            return None
        parts = [(self.entry(name), weight) for name, weight in parsed(model)]
        hashes = [(self._hash(entry.path, entry.state), weight) for entry, weight in parts]
        if len(hashes) == 1 and hashes[0][1] == 1:
            return hashes[0][0]
        return hashlib.sha256(repr(hashes).encode()).hexdigest()

    def _hash(self, path: Path, state: State) -> str:
        before, known = self._hashes.get(path, (None, ""))
        if before != state:
            known = sha256_of(path)
            self._hashes[path] = state, known
        return known

    def entry(self, name: str) -> Entry:
        """The delta of this name as it is now. Raises: UnknownModel."""
        if name not in self._entries:
            self.refresh()
        found = self._entries.get(name)
        if found is None:
            self._check_gate(name)
            known = [self.base_name, *self._entries]
            raise UnknownModel(f'no model "{shown(name)}"{closest(name, known)}')
        return self._current(found)

    def _made(self, entries: list[Entry], weights: list[float]) -> Delta:
        deltas = [self._read(entry) for entry in entries]
        if weights == [1.0]:
            return deltas[0]
        rows = base_rows_of(deltas[0], self._base.denoiser)
        rows = None if rows is None else rows.to(next(deltas[0].parameters()))
        if len(deltas) == 1:
            return scaled(deltas[0], weights[0], rows)
        return combine(deltas, weights, rows)

    def _read(self, entry: Entry) -> Delta:
        delta = Delta.load(entry.path)
        delta.check_base(self._base.fingerprint, self._base.name)
        for edit in delta.edits.values():
            if not edit.component:
                edit.check(self._base.denoiser)
        return delta

    def _current(self, entry: Entry) -> Entry:
        """This one, or what its file has become."""
        try:
            same = (_state(entry.path), self._gate(entry.path)) == (entry.state, entry.gate)
        except OSError as error:
            self.refresh()
            raise UnknownModel(f'no model "{entry.name}" any more: its file is gone') from error
        if same:
            return entry
        self.refresh()
        found = self._entries.get(entry.name)
        if found is None:
            self._check_gate(entry.name)
            raise UnknownModel(f'no model "{entry.name}" any more: its file cannot be served')
        return found

    def _check_gate(self, name: str) -> None:
        """Raises: UnknownModel if that is why there is no model of this name."""
        if name in self._stopped:
            raise UnknownModel(f'model "{shown(name)}" has not passed the gate of this server')

    def _entry(self, name: str, path: Path) -> Entry | None:
        """None for a file that cannot be served; why is logged once."""
        try:
            state = _state(path)
        except OSError:
            return None  # gone meanwhile
        gate = self._gate(path)
        known = self._entries.get(name)
        if known is not None and (known.path, known.state, known.gate) == (path, state, gate):
            return known
        if self._refused.get(path) == (state, gate):
            return None
        self._stopped.discard(name)
        try:
            if set(name) & set(MARKS) or name == self.base_name:
                raise SmidgenError(
                    f'"{name}" cannot be the name of a delta here; rename the file, without '
                    f"{' or '.join(MARKS)} and other than the base"
                )
            if state[1] > MOST_BYTES:
                raise SmidgenError(f"{state[1]:,} bytes are too many")
            header = read_header(path)
            if not fingerprints_match(header["fingerprint"], self._base.fingerprint):
                raise SmidgenError(f'made for base "{header["base"]}", whose weights are others')
            if self._gated and (why := refusal(path, self._hash(path, state))) is not None:
                self._stopped.add(name)
                raise SmidgenError(why)
        except SmidgenError as error:
            logger.warning("%s is not served: %s", shown(str(path)), shown(str(error)))
            self._refused[path] = state, gate
            return None
        return Entry(name=name, path=path, state=state, gate=gate, header=header)

    def _gate(self, path: Path) -> State | None:
        """What tells when the gate.json of a delta becomes another one."""
        if not self._gated:
            return None
        try:
            return _state(beside(path, GATE))
        except OSError:
            return None


def parsed(model: str) -> list[tuple[str, float]]:
    """The names in a model's name, each with its weight.

    Raises: UsageError for a weight that is no finite number, or too many parts.
    """
    parts = model.split("+")
    if len(parts) > MOST_PARTS:
        raise UsageError(f"model sums {len(parts)} deltas; expected at most {MOST_PARTS}")
    found = []
    for part in parts:
        name, mark, text = part.strip().partition(":")
        try:
            weight = float(text) if mark else 1.0
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise UsageError(
                f'model "{shown(model[:80])}": "{shown(text[:20])}" is no finite number; expected '
                "NAME, NAME:STRENGTH or a sum of such with + between them"
            )
        found.append((name, weight))
    return found


def _state(path: Path) -> State:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino
