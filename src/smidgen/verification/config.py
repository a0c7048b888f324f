"""What is verified of a base, and how. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smidgen.errors import UsageError, closest
from smidgen.evaluation.names import split_names
from smidgen.files.checks import MOST_IMAGES, check_integer
from smidgen.files.settings import check_choices
from smidgen.models.chosen import DEVICES, BaseOptions
from smidgen.sampling.config import Precision

CHECKS = ("files", "forward", "training", "published")


@dataclass(frozen=True, kw_only=True)
class VerifiedBase(BaseOptions):
    """The base with its released weights."""

    device: DEVICES = "auto"
    """auto: the accelerator if there is one."""

    def load(self, **more: Any) -> Any:
        """The base on its device."""
        from smidgen.models.calling import device_of

        return super().load(device=device_of(self.device), **more)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """What is verified, and against what. Raises: UsageError for a value that makes no sense."""

    checks: str | tuple[str, ...] = "all"
    """With commas: files (their hashes), forward (against stock diffusers), training (twice the
    same bits, the base untouched), published (the number that its authors measured); or all."""
    reference: Path | None = None
    """For published: the reference of the published number, of DiT at 256 pixels ADM's
    VIRTUAL_imagenet256_labeled.npz; none: what ships, where something does."""
    num_images: int | None = None
    """For published: how many images are drawn; none: 10,000, or as many as the number is of."""
    precision: Precision | None = None
    """For published: number format of the denoiser; none: bf16 on an accelerator, else fp32."""
    weights: Path | None = None
    """For published: the file of the features (Inception); none: where it is usually kept, else
    fetched once."""
    batch_size: int = 32
    """Images at a time."""
    seed: int = 0
    """Of the images that are drawn."""
    cache_dir: Path | None = None
    """Where statistics of the reference are kept; none: the cache folder of this machine."""

    def __post_init__(self) -> None:
        check_integer("num_images", self.num_images, most=MOST_IMAGES)
        check_integer("batch_size", self.batch_size, most=MOST_IMAGES)
        check_integer("seed", self.seed, least=0)
        check_choices(self)
        for name in split_names(self.checks):
            if name not in (*CHECKS, "all"):
                raise UsageError(f'unknown check "{name}"{closest(name, CHECKS)}')
        if not self.chosen:
            raise UsageError(f"checks is empty; choose from: all, {', '.join(CHECKS)}")
        if self.reference is not None and not self.reference.exists():
            raise UsageError(f"no such file or folder: {self.reference}")

    @property
    def chosen(self) -> tuple[str, ...]:
        """The checks that are made, in their order."""
        names = split_names(self.checks)
        return CHECKS if "all" in names else tuple(name for name in CHECKS if name in names)
