"""The two errors a user can cause, and how they name things. The command line prints them and
leaves with their exit code.
"""

import difflib
import unicodedata
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

MOST_SHOWN, MOST_LISTED = 80, 600  # characters of a name, and of a list of them

_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # of the direction


class SmidgenError(Exception):
    """Something given cannot be used; the message says what, what was expected, what to do."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """It comes from one process to another whatever its `__init__` takes."""
        return _as_it_was, (type(self), self.args, self.__dict__)


def _as_it_was(kind: type[SmidgenError], args: Any, attributes: dict[str, Any]) -> SmidgenError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


class UsageError(SmidgenError):
    """A request that makes no sense as written: an unknown name, a bad value."""

    exit_code = 2


def closest(name: str, known: Iterable[str]) -> str:
    """For the end of a message: `; did you mean "x"?` with the nearest known name, or the list of
    them all if none is near. Names that a file brings may be long, and many: what is shown is not.
    """
    known = list(known)
    if not known:
        return "; there are none"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f'; did you mean "{_cut(near[0])}"?'
    lengths = accumulate(len(_cut(one)) for one in known)
    listed = [one for one, length in zip(known, lengths, strict=True) if length <= MOST_LISTED]
    left = len(known) - len(listed)
    more = f" and {left:,} more" if left else ""
    return f"; choose from: {', '.join(map(_cut, listed))}{more}"


def _cut(name: str) -> str:
    return shown(name if len(name) <= MOST_SHOWN else f"{name[:MOST_SHOWN]}…")


def shown(text: str, keep: str = "") -> str:
    """`text` for one line of a terminal, a message or a report: control characters, line breaks,
    turns of direction and bytes that are no UTF-8 as escapes. All else is as it is, wide spaces
    too; so are the characters in `keep`.
    """
    if text.isprintable():
        return text
    return "".join(ascii(c)[1:-1] if _is_harmful(c) and c not in keep else c for c in text)


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _TURNS
