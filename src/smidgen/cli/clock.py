"""How long the parts of a demo take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from smidgen.cli.options import log


class Clock:
    """Seconds of each part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def part(self, name: str, text: str) -> Iterator[None]:
        """Say what begins, and note how long it took; parts of one name are added."""
        log(text)
        start = time.perf_counter()
        yield
        so_far = self.seconds.get(name, 0.0)
        self.seconds[name] = round(so_far + time.perf_counter() - start, 2)

    def result(self) -> dict[str, float]:
        """All parts and their sum with what lay between."""
        return {**self.seconds, "total": round(time.perf_counter() - self._start, 2)}
