"""The names that an evaluation is asked for, of features and metrics, and whether they make sense.

Nothing heavy is imported here, so that the command line checks them before torch loads. The metrics
are in table.py; how features are computed is in features.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from smidgen.errors import UsageError, closest
from smidgen.evaluation.table import CLIP, METRICS

FEATURES = ("glyphs", "inception", "dinov2", *CLIP)
DEFAULT = "glyphs"
PROMPT = "a photo of a {}"


def check_names(
    features: str | Sequence[str] | None,
    metrics: str | Sequence[str] | None,
    prompt: str = PROMPT,
    *,
    known: Sequence[str] | None = FEATURES,
) -> list[str]:
    """The names of the features (None: DEFAULT), if they and those of the metrics make sense; no
    file is read. `known` None: any features.

    Raises: UsageError for unknown or repeated names, or a prompt without a place for the class.
    """
    names = split_names(DEFAULT if features is None else features)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"features are {', '.join(names) or 'none'}; name each once, at least one")
    for name in split_names(metrics or ()):
        if name not in METRICS:
            raise UsageError(f'unknown metric "{name}"{closest(name, METRICS)}')
    if "{}" not in prompt:
        raise UsageError(f'the prompt "{prompt}" has no {{}} where the class name belongs')
    for name in names:
        if known is not None and name not in known:
            raise UsageError(f'unknown features "{name}"; choose from: {", ".join(known)}')
    return names


def split_names(names: str | Sequence[str]) -> list[str]:
    """Names with commas between them, or several of them, as a list."""
    listed = [names] if isinstance(names, str) else names
    return [part.strip() for name in listed for part in name.split(",") if part.strip()]
