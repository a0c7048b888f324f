"""The ordered thread pool: order, errors, and no unbounded work ahead of the consumer."""

import threading
import time

import pytest

from smidgen.data.reading import CHUNK, MAX_WORKERS, ordered_map


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_when_early(item: int) -> int:
        time.sleep(0.002 if item % 16 == 0 else 0)
        return item * item

    assert list(ordered_map(slow_when_early, range(200))) == [item * item for item in range(200)]


def test_little_is_read_ahead_and_closing_stops_the_rest() -> None:
    lock = threading.Lock()
    begun: list[int] = []

    def note(item: int) -> int:
        with lock:
            begun.append(item)
        return item

    results = ordered_map(note, range(10_000))
    assert next(results) == 0
    results.close()
    assert len(begun) <= (2 * MAX_WORKERS + 2) * CHUNK


def test_an_error_reaches_the_consumer() -> None:
    def fail(item: int) -> int:
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError):
        list(ordered_map(fail, [1]))
