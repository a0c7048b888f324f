"""What stands where a result should go: nothing, the same request to go on with or finished, or
another one, which is refused. One rule for runs, samples, measurements and demos.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from smidgen.errors import UsageError
from smidgen.files.names import excerpt
from smidgen.files.toml import NONE, toml

Standing = Literal["new", "begun", "finished"]

# beside "give another output" wherever what stands there is refused, in Python as on a command line
START_OVER = "start over there with force (--force)"


def standing(
    place: Path,
    what: str,
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    *,
    finished: bool,
    force: bool = False,
    not_compared: Collection[str] = (),
) -> Standing:
    """How a request with the settings `now` stands to what is at `place`, which was made with the
    settings `before` (None: nothing is there). With `force` what differs is begun anew.

    Raises: UsageError if `what` is there was made with other settings, naming them.
    """
    if before is None:
        return "new"
    if changes := changed(before, now, not_compared):
        if force:
            return "new"
        raise UsageError(
            f"{place} holds {what} of other settings ({', '.join(changes)}); give another output, "
            f"or {START_OVER}"
        )
    return "finished" if finished else "begun"


def changed(
    before: Mapping[str, Any], now: Mapping[str, Any], not_compared: Collection[str] = ()
) -> list[str]:
    """`name a -> b` of each setting that differs; one that is missing is none or empty."""
    return [
        f"{name} {_shown(before, name)} -> {_shown(now, name)}"
        for name in {**before, **now}
        if name not in not_compared and _value(before, name) != _value(now, name)
    ]


def _value(settings: Mapping[str, Any], name: str) -> Any:
    value = settings.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = list(value)
    return None if value in (NONE, "", []) else value


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return excerpt(toml(settings.get(name, NONE)))
