"""What is measured, and how: the one object that every evaluation becomes.

Nothing heavy is imported here, so that the command line checks it before torch loads.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from smidgen.data.names import LayoutName
from smidgen.evaluation.names import PROMPT, check_names, split_names
from smidgen.files.checks import MOST_IMAGES, check_integer


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured, and how. Raises: UsageError for a value that makes no sense."""

    layout: LayoutName = "folder"
    """How the reference lies there, as for train."""
    split: str | None = None
    """Which part of the reference; none: the layout's default."""
    features: str | tuple[str, ...] | None = None
    """Feature extractors with commas: glyphs, inception, dinov2, clip-b32, clip-l14, clip-glyphs;
    none: glyphs, or of a personalisation clip-glyphs (of glyphs-text) or clip-b32."""
    metrics: str | tuple[str, ...] | None = None
    """Metrics with commas, see above; none: those with *, where they can be had. One that is named
    and cannot be had is an error."""
    resize: Literal["clean", "legacy"] | None = None
    """How inception's images are resized; none: clean."""
    weights: Path | None = None
    """The extractor's weights; none: where they are usually kept, else fetched once."""
    prompt: str = PROMPT
    """The text of a class, for metrics that compare with texts."""
    batch_size: int = 64
    """Images at a time."""
    cache_dir: Path | None = None
    """Where statistics of reference folders are kept; none: the cache folder of this machine."""
    device: str = "auto"
    """auto: the accelerator if there is one."""

    def __post_init__(self) -> None:
        check_integer("batch_size", self.batch_size, most=MOST_IMAGES)
        check_names(self.features, self.metrics, self.prompt, known=None)

    @property
    def metric_names(self) -> list[str] | None:
        """The metrics that are named, None if none is."""
        return None if self.metrics is None else split_names(self.metrics)
