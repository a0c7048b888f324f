"""Ctrl-C and SIGTERM as a request that the loop sees between two steps, so that it saves first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from smidgen.errors import SmidgenError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(SmidgenError):
    """Training was asked to stop and did, after saving. `exit_code` is the shell's 128 + signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """`signal` is the first signal that came, None until then."""

    signal: int | None = None


_open: list[StopRequest] = []  # of this process, the innermost last


def ask_to_stop() -> None:
    """Ask all that collects stop requests in this process to stop, from another thread than the
    main one, and wait until it has: what was asked before is not hurried by it.
    """
    while _open:
        for request in tuple(_open):
            request.signal = request.signal or signal.SIGTERM
        time.sleep(0.05)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Collect the first SIGINT or SIGTERM instead of dying of it; the previous handlers return at
    the end. A second signal acts as it did before, for whoever cannot wait for the step to end.

    In a thread other than the main one, where Python allows no handlers, nothing is ever collected.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            # None: installed by something other than Python, which cannot be put back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def collect(number: int, frame: FrameType | None) -> None:
        request.signal = number
        restore()

    _open.append(request)
    for number in SIGNALS:
        signal.signal(number, collect)
    try:
        yield request
    finally:
        restore()
        _open.remove(request)
