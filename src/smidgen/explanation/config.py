"""What is looked at, and how: one object. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from smidgen.errors import UsageError
from smidgen.files.checks import check_integer, check_number

DOCUMENT = "explain.json"
MOST_TIMES = 50
MOST_PICTURES = 256


@dataclass(frozen=True, kw_only=True)
class ExplanationConfig:
    """What is looked at. Raises: UsageError for a value that makes no sense."""

    prompt: str | None = None
    """For a base that reads prompts: what the network is told; none: the subject's prompt, or that
    of the first class that a delta was trained on."""
    without: str | None = None
    """The prompt that it is compared with; none: that of the subject's class, where prompt is none
    too, else no prompt."""
    word: str | None = None
    """A word of the prompt, whose attention is shown; none: the subject's token or the new word."""
    class_name: str | None = None
    """For a base that knows classes: which one is compared with no class; none: the first."""
    num_images: int = 4
    """Pictures that are noised; numbers are of all, maps of the first."""
    times: int = 5
    """Times at which they are noised, spread as training draws them."""
    steps: int = 25
    """Sampling steps of the pictures."""
    guidance: float = 4.0
    """Scale of classifier-free guidance of the pictures."""
    seed: int = 0
    """Of the pictures and of the noise."""

    def __post_init__(self) -> None:
        check_integer("num_images", self.num_images, most=MOST_PICTURES)
        check_integer("times", self.times, most=MOST_TIMES)
        check_integer("steps", self.steps)
        check_integer("seed", self.seed, least=0)
        check_number("guidance", self.guidance)
        if self.prompt == "":
            raise UsageError('prompt is ""; expected text, or leave it out')
        if self.prompt is not None and self.prompt == self.without:
            raise UsageError(
                f'prompt and without are both "{self.prompt}": nothing differs between them'
            )
        given = [name for name in ("prompt", "without", "word") if getattr(self, name) is not None]
        if self.class_name is not None and given:
            raise UsageError(
                f"class_name is for a base that knows classes, {given[0]} for one that reads "
                "prompts; give one of them"
            )
