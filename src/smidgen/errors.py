"""The two errors a user can cause. The command line prints them and leaves with their exit code."""

import difflib
from collections.abc import Iterable


class SmidgenError(Exception):
    """Something given cannot be used; the message says what, what was expected, what to do."""

    exit_code = 1


class UsageError(SmidgenError):
    """A request that makes no sense as written: an unknown name, a bad value."""

    exit_code = 2


def closest(name: str, known: Iterable[str]) -> str:
    """For the end of a message: `; did you mean "x"?` with the nearest known name, or the list of
    them all if none is near.
    """
    known = list(known)
    if not known:
        return "; there are none"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{near[0]}"?'
    return f"; choose from: {', '.join(known)}"
