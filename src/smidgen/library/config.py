"""What a gate is told: which deltas, what they must reach, and how copies are looked for.

Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from smidgen.errors import UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.names import PROMPT, split_names
from smidgen.files.checks import check_number
from smidgen.files.settings import NO_FLAG
from smidgen.library.requirements import Requirement
from smidgen.sampling.config import MeasuredSampling


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """Which deltas are judged, and by what. Raises: UsageError for what makes no sense."""

    deltas: tuple[Path, ...]
    """Runs, files of deltas, or folders of them."""
    require: tuple[str, ...] = ()
    """What their results must reach, each METRIC=NUMBER or FEATURES:METRIC=NUMBER: a floor of a
    metric of which more is better, else a ceiling; of a mean with a spread the worse end counts."""
    most_copied: float | None = None
    """The largest share of drawn images that may be copies of training pictures; none: these are
    not looked for."""

    def __post_init__(self) -> None:
        if not self.deltas:
            raise UsageError("no deltas given; give runs, files of deltas or folders of them")
        check_number("most_copied", self.most_copied, most=1.0)
        if not self.require and self.most_copied is None:
            raise UsageError(
                "nothing is required; give require (METRIC=NUMBER), most_copied, or both"
            )
        _ = self.requirements

    @property
    def requirements(self) -> tuple[Requirement, ...]:
        """What is required, read. Raises: UsageError for what is no requirement."""
        return tuple(Requirement.parse(part) for part in split_names(self.require))


@dataclass(frozen=True, kw_only=True)
class CopiesConfig(EvaluationConfig):
    """Against what, and by which features, drawn images are compared with training pictures.

    Raises: UsageError for a value that makes no sense.
    """

    data: Path | None = None
    """The training pictures; none: those that the recipe of each run names."""
    features: str | None = None
    """The feature extractor: glyphs, inception, dinov2, clip-b32, clip-l14 or clip-glyphs; none:
    glyphs, or of a base that reads prompts clip-glyphs (of glyphs-text) or clip-b32."""
    metrics: str | tuple[str, ...] | None = field(default=None, metadata=NO_FLAG)
    prompt: str = field(default=PROMPT, metadata=NO_FLAG)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features is not None and "," in self.features:
            raise UsageError(f'features is "{self.features}"; copies are looked for in one kind')


@dataclass(frozen=True, kw_only=True)
class CopiesSampling(MeasuredSampling):
    """How images are drawn among which copies are looked for, of all classes or prompts of a delta.

    Raises: UsageError for a value that makes no sense.
    """

    num_images: int = 256
    """Images in total, image i of class i mod K."""
    edits: str = field(default="all", metadata=NO_FLAG)  # what is served is all of a delta


def check_use(config: GateConfig, *groups: object) -> None:
    """Raises: UsageError for a setting of these groups that is given where copies are not looked
    for, as nothing else uses them.
    """
    for group in groups if config.most_copied is None else ():
        usual = vars(type(group)())
        for name, value in vars(group).items():
            if value != usual[name] and name != "batch_size":
                raise UsageError(
                    f"{name} is of the search for copies; give most_copied too, or leave it out"
                )
