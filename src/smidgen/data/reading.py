"""Many small reads at once: a thread pool that keeps the order and a bounded number of results.

Threads suffice: file reads, hashing, Pillow's decoders and resampling all release the GIL.
"""

import collections
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_WORKERS = 8
CHUNK = 8


def num_workers() -> int:
    """Threads to use: two for each core this process may use, as reads also wait; at most eight."""
    if hasattr(os, "sched_getaffinity"):
        return min(MAX_WORKERS, 2 * len(os.sched_getaffinity(0)))
    return min(MAX_WORKERS, 2 * (os.cpu_count() or 1))


def ordered_map(
    function: Callable[[Item], Result], items: Sequence[Item]
) -> Generator[Result, None, None]:
    """`map(function, items)` in threads: same order, few results ahead of the consumer.

    Closing the generator cancels what has not begun; without that an error waits for it.
    """
    workers = num_workers()
    waiting: collections.deque[Future[list[Result]]] = collections.deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="smidgen-read")

    def run(chunk: Sequence[Item]) -> list[Result]:
        return [function(item) for item in chunk]

    try:
        for start in range(0, len(items), CHUNK):
            waiting.append(pool.submit(run, items[start : start + CHUNK]))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
