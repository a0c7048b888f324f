import signal
import threading

import pytest

from smidgen.training.interrupt import SIGNALS, stop_requests


@pytest.fixture(autouse=True)
def _pythons_ctrl_c():
    """A shell that starts the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_the_old_handlers_return(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    with stop_requests() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_a_second_ctrl_c_does_not_wait():
    with stop_requests():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_in_another_thread_nothing_is_collected_and_nothing_breaks():
    seen = []

    def work():
        with stop_requests() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
