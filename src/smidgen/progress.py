"""The bar of work that is counted, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def counting_bar(label: str, *, progress: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar for work that reports (done, total); it appears once the work has taken a second."""
    with tqdm(
        desc=label,
        unit="image",
        file=sys.stderr,
        disable=not progress,
        dynamic_ncols=True,
        leave=False,
        delay=1.0,
    ) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report
