"""The time that drawing will take is told after the first batch, where it is long."""

import logging

import numpy as np
import pytest

from smidgen.evaluation.estimate import announced, duration


class Clock:
    """Seconds that pass only when told."""

    now = 5.0

    def __call__(self) -> float:
        return self.now


def drawn(clock: Clock, seconds: float, batches: int, size: int = 10):
    for number in range(batches):
        clock.now += seconds
        yield number * size, np.zeros((size, 1, 1, 3), np.uint8), None


def test_a_long_drawing_says_how_long_before_its_second_batch(caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO, logger="smidgen"):
        batches = announced(drawn(clock, 12.0, 3), 1000, clock)
        assert caplog.messages == []
        assert next(batches)[0] == 0
        (line,) = caplog.messages
        assert "1,000 images will take about 20 minutes (the first 10 took 12.0 seconds)" in line
        assert [first for first, _, _ in batches] == [10, 20]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(("seconds", "total"), [(0.1, 1000), (500.0, 10)])
def test_a_short_drawing_or_a_short_rest_is_not_worth_a_word(seconds, total, caplog):
    clock = Clock()
    with caplog.at_level(logging.INFO, logger="smidgen"):
        list(announced(drawn(clock, seconds, 2), total, clock))
    assert caplog.messages == []


def test_several_processes_share_the_time_and_the_main_one_tells(caplog, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, words in (("0", ["about 5 minutes"]), ("1", [])):
        monkeypatch.setenv("RANK", rank)
        caplog.clear()
        clock = Clock()
        with caplog.at_level(logging.INFO, logger="smidgen"):
            next(announced(drawn(clock, 12.0, 2), 1000, clock))
        assert len(caplog.messages) == len(words)
        assert all(word in line for word, line in zip(words, caplog.messages, strict=True))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(90, "90 seconds"), (720, "12 minutes"), (7200, "2 h 0 min"), (9610, "2 h 40 min")],
)
def test_a_duration_is_told_in_fitting_units(seconds, words):
    assert duration(seconds) == words
