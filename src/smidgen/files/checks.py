"""The checks of a setting's value, each with its one line of what was given and what is expected.

None passes everywhere: which settings may be None is a matter of their types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from smidgen.errors import UsageError

MOST_IMAGES = 2**16  # at a time: more than any memory holds of the smallest pictures


def check_integer(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """Raises: UsageError unless the value is an integer from `least` to `most` (None: any), or
    None.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}; expected an integer of at least {least}")
    if most is not None and value > most:
        raise UsageError(f"{name} is {value}; expected at most {most}")


def check_number(name: str, value: object, *, above: bool = False, most: float = math.inf) -> None:
    """Raises: UsageError unless the value is None or a finite number from 0 (`above`: not 0 itself)
    to `most`.
    """
    if value is None:
        return
    fits = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 <= value <= most
        and not (above and value == 0)
    )
    if not fits:
        bound = "above 0" if above else ("of at least 0" if math.isinf(most) else "from 0 to 1")
        raise UsageError(f"{name} is {value!r}; expected a finite number {bound}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises: UsageError unless the value is None or one of the choices."""
    if value is not None and value not in choices:
        raise UsageError(f'{name} is "{value}"; expected one of: {", ".join(choices)}')
