"""What is distilled, and how: one object. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from smidgen.errors import UsageError
from smidgen.files.checks import check_integer, check_number
from smidgen.files.settings import check_choices

DOCUMENT, RELIEF, VIEWS = "sds.json", "relief.safetensors", "views.png"
MOST_VIEWS = 64


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What the relief is to be, and how it becomes that. Raises: UsageError for a value that makes
    no sense.
    """

    prompt: str | None = None
    """For a base that reads prompts: what its pictures are to show; none: the subject's prompt, or
    the first that the delta was trained on."""
    class_name: str | None = None
    """For a base that knows classes: which one; none: the first."""
    steps: int = 200
    """Steps of Adam on heights and colours."""
    batch_size: int = 4
    """Views of a step, each from another side."""
    lr: float = 0.05
    """Learning rate of Adam."""
    space: Literal["pixels", "latents"] = "pixels"
    """Where views are pulled. latents: as DreamFusion, through the encoder of the codec, whose
    gradients also make noise that it does not see; pixels: to the decoded image (as HiFA)."""
    guidance: float = 6.0
    """Scale of classifier-free guidance, which a base that has it as an input (FLUX) is told; SDS
    needs more than sampling does."""
    depth: float = 0.4
    """Of the relief: how far its highest point rises, where half the picture's side is 1."""
    angle: float = 0.5
    """How far to the side it is looked at, as the tangent of the angle."""
    smoothness: float = 1.0
    """Weight of the squared differences of neighbouring heights."""
    num_views: int = 5
    """Pictures of it at the end, from the left to the right."""
    seed: int = 0
    """Everything random depends on this and nothing else."""

    def __post_init__(self) -> None:
        check_integer("steps", self.steps)
        check_integer("batch_size", self.batch_size, most=MOST_VIEWS)
        check_integer("num_views", self.num_views, most=MOST_VIEWS)
        check_integer("seed", self.seed, least=0)
        for name in ("lr", "depth"):
            check_number(name, getattr(self, name), above=True)
        for name in ("guidance", "angle", "smoothness"):
            check_number(name, getattr(self, name))
        check_choices(self)
        if self.prompt is not None and not self.prompt.strip():
            raise UsageError('prompt is ""; expected text, or leave it out')
        if self.prompt is not None and self.class_name is not None:
            raise UsageError(
                "class_name is for a base that knows classes, prompt for one that reads prompts; "
                "give one of them"
            )
