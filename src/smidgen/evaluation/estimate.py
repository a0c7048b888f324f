"""How long the drawing of samples will take, told while there is time to ask for fewer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator

from smidgen import processes
from smidgen.evaluation.stream import ArrayBatch

LONG = 60.0  # seconds that are worth a word

log = logging.getLogger(__name__)


def announced(
    batches: Iterable[ArrayBatch], total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[ArrayBatch]:
    """The batches as they come; the first one's time tells that of all `total` images, and is
    logged by the main process if the rest takes long. `clock` is in seconds.
    """
    start = clock()
    for number, batch in enumerate(batches):
        if number == 0 and processes.is_main():
            seconds, count = clock() - start, len(batch[1])
            rest = seconds * (total / (count * processes.world_size()) - 1)
            if rest > LONG:
                log.info(
                    f"drawing {total:,} images will take about {duration(seconds + rest)} "
                    f"(the first {count} took {seconds:.1f} seconds); num_images says how many"
                )
        yield batch


def duration(seconds: float) -> str:
    """`90 seconds`, `12 minutes`, `2 h 40 min`."""
    minutes = round(seconds / 60)
    if minutes < 3:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
