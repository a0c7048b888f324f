"""What is drawn and how: the one object that every request for images becomes.

Nothing heavy is imported here, so that the command line checks it before torch loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from smidgen.diffusion.names import Channels, Guidance, Restoration, Sampler
from smidgen.errors import UsageError, closest
from smidgen.files.checks import MOST_IMAGES, check_integer, check_number
from smidgen.files.reading import sha256_of
from smidgen.files.settings import ADDS, NO_FLAG, check_choices

if TYPE_CHECKING:
    from smidgen.diffusion.process import Process
    from smidgen.models.base import Base

MEASURED_IMAGES = 10_000  # as published numbers are
CHANGED_STRENGTH = 0.8  # of an image that is changed, where nothing else is said
FILES = ("guidance_delta", "image", "mask")  # settings that are files, known by their content

# settings that records name only where they are not as usual
UNUSUAL = (
    *("guidance_kind", "guidance_delta", "guidance_interval", "edits"),
    *("image", "image_strength", "mask", "restore", "noise_level", "same_noise", "numbers"),
)

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What to draw, and how. Raises: UsageError for a value that makes no sense."""

    classes: str | tuple[str, ...] = "all"
    """Class names with commas between them, or all."""
    prompt: tuple[str, ...] = field(default=(), metadata=ADDS)
    """For a base that reads prompts: one or several; without any, those of the classes that the
    delta was trained on."""
    negative_prompt: str = ""
    """For a base that reads prompts: what guidance leads away from, in place of no prompt."""
    num_images: int | None = None
    """Images in total, image i of class (or prompt) i mod K; none: one of each."""
    steps: int = 50
    """Sampling steps."""
    sampler: Sampler | None = None
    """ddpm: ancestral, as in the papers; dpm++: DPM-Solver++(2M), good from 15 steps on; euler: for
    flow-matching bases; none: ddpm, or euler for those."""
    guidance: float = 1.5
    """Scale of classifier-free guidance, 1 is without; or what a base with the scale as an input
    (FLUX) is told."""
    guidance_channels: Channels = "all"
    """first-three: as the code released with DiT does."""
    guidance_kind: Guidance = "classifier-free"
    """What it leads away from: classifier-free, from no class (or prompt); domain, from no class of
    the base without the delta; auto, from the same class of a weaker delta."""
    guidance_delta: Path | str | None = None
    """For guidance_kind auto: the weaker delta, such as one that the same run kept earlier."""
    guidance_interval: tuple[float, ...] = (0.0, 1.0)
    """LOW HIGH: guidance acts where the noise is between these shares of the way from data, 0, to
    noise, 1."""
    image: Path | str | None = None
    """A picture to start from, or to restore; cropped and brought to the base's size."""
    image_strength: float | None = None
    """Share of the steps that are drawn, above 0 to 1: how far it is changed; none: 0.8, or 1 with
    a mask or to upscale."""
    mask: Path | str | None = None
    """A picture as large as the image: drawn anew where it is white, kept where it is black."""
    restore: Restoration | None = None
    """inpaint: what the mask says; denoise: the image is noisy, and drawn from there; upscale: it
    is smaller by a whole number, and its coarse parts are kept; none: it is changed as a whole."""
    noise_level: float | None = None
    """To denoise: the standard deviation of the image's noise, where black is 0 and white 1."""
    edits: str = "all"
    """Which edits of the delta act, with commas between: kinds (shift, scale, bypass, tokens,
    table, weight, word), components (denoiser, text_encoder) or modules (blocks.3); -table: all but
    the label table, so that the classes are the base's own; base: the base alone."""
    seed: int = 0
    """Image i depends on this and i only."""
    same_noise: bool = False
    """The images of a round over all classes (or prompts) begin from one noise: image i depends on
    i div K in place of i."""
    numbers: tuple[int, ...] = ()
    """Draw only the images of these numbers, counted from 0; none: all."""
    batch_size: int = 32
    """Images at a time; the images are the same whatever it is, to rounding where the base is no
    DiT."""
    precision: Precision | None = None
    """Number format of the denoiser, in which the base must have been loaded; none: the base's."""

    def __post_init__(self) -> None:
        for name in ("num_images", "steps"):
            check_integer(name, getattr(self, name))
        check_integer("batch_size", self.batch_size, most=MOST_IMAGES)
        check_integer("seed", self.seed, least=0)
        for number in self.numbers:
            check_integer("numbers", number, least=0)
        check_number("guidance", self.guidance)
        check_choices(self)
        if not self.edits.strip():
            raise UsageError('edits is ""; expected words such as "scale,-table", "all" or "base"')
        low, *high = self.guidance_interval or (1.0,)
        if len(high) != 1 or not 0 <= low < high[0] <= 1:
            raise UsageError(
                f"guidance_interval is {list(self.guidance_interval)}; expected two shares, LOW "
                "below HIGH, from 0 to 1"
            )
        if (self.guidance_kind == "auto") != (self.guidance_delta is not None):
            raise UsageError(
                "guidance_delta is the weaker delta of guidance_kind auto; give both or neither"
            )
        if self.guidance_kind != "classifier-free" and self.guidance == 1:
            raise UsageError(
                f"guidance_kind {self.guidance_kind} acts through guidance, which is 1: that is "
                "without; give more"
            )
        if self.guidance_kind == "auto" and self.negative_prompt:
            raise UsageError(
                "negative_prompt is of no use to guidance_kind auto, which leads away from the "
                "same prompt; leave it out"
            )
        if self.negative_prompt and self.guidance == 1:
            raise UsageError(
                "negative_prompt acts through guidance, which is 1: that is without; give more"
            )
        self._check_image()

    def _check_image(self) -> None:
        """Raises: UsageError for what says how an image is changed and does not fit together."""
        if self.image is None:
            for name in ("image_strength", "mask", "restore", "noise_level"):
                if getattr(self, name) is not None:
                    raise UsageError(
                        f"{name} is about the image that is changed; give image, the picture's file"
                    )
            return
        check_number("image_strength", self.image_strength, above=True, most=1)
        check_number("noise_level", self.noise_level, above=True, most=1)
        if (self.restore == "denoise") != (self.noise_level is not None):
            raise UsageError(
                "noise_level is that of the image that restore denoise starts from; give both or "
                "neither"
            )
        if self.restore == "denoise" and self.image_strength is not None:
            raise UsageError(
                "image_strength is of no use to restore denoise, which starts at noise_level; "
                "leave it out"
            )
        if self.restore == "inpaint" and self.mask is None:
            raise UsageError("restore inpaint needs mask, a picture that is white where it draws")
        if self.restore in ("denoise", "upscale") and self.mask is not None:
            raise UsageError(f"mask is of no use to restore {self.restore}; leave it out")
        if self.image_strength is not None and self.first_steps < 1:
            raise UsageError(
                f"image_strength {self.image_strength:g} of {self.steps} steps is not one step; "
                "give more of either"
            )

    @property
    def first_steps(self) -> int:
        """How many of the steps, the last ones, are drawn from the image: as many as diffusers'
        pipelines would.
        """
        whole = self.mask is not None or self.restore == "upscale"
        if self.image_strength is None:
            return self.steps if whole else max(1, int(self.steps * CHANGED_STRENGTH))
        return int(self.steps * self.image_strength)

    def resolved(self, base: Base) -> SamplingConfig:
        """With the sampler and the precision that `base` makes of it.

        Raises: UsageError for a sampler that is not for this base, steps that it does not take, a
            precision that it is not in, or a negative prompt that it has no use for.
        """
        if self.negative_prompt and base.conditioner is None:
            raise UsageError(
                f'negative_prompt is of no use to base "{base.name}", which reads no prompts; '
                "leave it out"
            )
        if self.guidance_kind != "classifier-free" and base.family.guidance == "embedded":
            raise UsageError(
                f'guidance_kind {self.guidance_kind} is of no use to base "{base.name}", whose '
                "guidance is an input; leave it out"
            )
        if self.negative_prompt and base.family.guidance == "embedded":
            raise UsageError(
                f'negative_prompt is of no use to base "{base.name}", whose guidance is an '
                "input; leave it out"
            )
        if self.precision not in (None, base.precision):
            from smidgen.models.calling import DTYPES

            raise UsageError(
                f'precision is {self.precision} and base "{base.name}" is in {base.precision}; '
                f"load it with dtype={DTYPES[self.precision]}, or leave precision out"
            )
        sampler = self.sampler or base.process.default_sampler
        check_steps(base.process, base.name, sampler, self.steps)
        return replace(self, sampler=sampler, precision=base.precision)

    def chosen(self, known: Sequence[str]) -> list[str]:
        """The names among the `known` ones that `classes` means, in its order.

        Raises: UsageError for a name that is not known, with the closest one, or for none at all.
        """
        if self.classes == "all" and "all" not in known:
            return list(known)
        chosen = self.classes
        if isinstance(chosen, str):  # one name may itself hold commas
            chosen = [chosen] if chosen in known else [part.strip() for part in chosen.split(",")]
        if not chosen:
            raise UsageError('no classes given; name some, or "all"')
        for name in chosen:
            if name not in known:
                raise UsageError(f'unknown class "{name}"{closest(name, known)}')
        return list(chosen)

    def facts(self) -> dict[str, Any]:
        """All that the images depend on, as JSON, files by their SHA-256; of what is seldom asked
        for what is not as usual.
        """
        facts = {name: value for name, value in asdict(self).items() if name != "batch_size"}
        usual = SamplingConfig()
        for name in UNUSUAL:
            if facts[name] == getattr(usual, name):
                del facts[name]
        return facts | self.files()

    def files(self) -> dict[str, str]:
        """The SHA-256 of each file that the images depend on, by its setting."""
        given = {name: getattr(self, name) for name in FILES}
        return {name: sha256_of(path) for name, path in given.items() if path is not None}


class SamplingFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What others show and compare of how images were drawn, as a file says it; None: unknown."""

    sampler: str | None = None
    steps: int | None = None
    guidance: float | None = None
    guidance_channels: str | None = None
    guidance_kind: str | None = None
    guidance_delta: str | None = None
    guidance_interval: list[float] | None = None
    edits: str | None = None
    seed: int | None = None
    precision: str | None = None


@dataclass(frozen=True, kw_only=True)
class LoadedSampling(SamplingConfig):
    """What to draw, and how. Raises: UsageError for a value that makes no sense."""

    precision: Precision = "fp32"
    """Number format of the denoiser: the base is loaded in it."""


@dataclass(frozen=True, kw_only=True)
class MeasuredSampling(LoadedSampling):
    """How the samples of a run or a delta are drawn where they are measured, of all its classes.

    Raises: UsageError for a value that makes no sense.
    """

    classes: str | tuple[str, ...] = field(default="all", metadata=NO_FLAG)
    prompt: tuple[str, ...] = field(default=(), metadata=NO_FLAG)
    num_images: int | None = None
    """Samples in total, image i of class i mod K; none: 10,000, or of a personalisation four of
    each of its prompts."""
    image: Path | str | None = field(default=None, metadata=NO_FLAG)
    image_strength: float | None = field(default=None, metadata=NO_FLAG)
    mask: Path | str | None = field(default=None, metadata=NO_FLAG)
    restore: Restoration | None = field(default=None, metadata=NO_FLAG)
    noise_level: float | None = field(default=None, metadata=NO_FLAG)
    same_noise: bool = field(default=False, metadata=NO_FLAG)
    numbers: tuple[int, ...] = field(default=(), metadata=NO_FLAG)
    batch_size: int = field(default=64, metadata=NO_FLAG)


def check_steps(process: Process, base: str, sampler: str, steps: int) -> None:
    """Raises: UsageError if the base of this name, of this process, is not sampled so."""
    if sampler not in process.samplers:
        raise UsageError(
            f'{sampler} does not sample "{base}", a {process.name} base; use '
            f"{', '.join(process.samplers)}"
        )
    most = process.most_steps(sampler)
    if most is not None and steps > most:
        raise UsageError(f"steps is {steps}; {sampler} takes at most {most} with this base")
