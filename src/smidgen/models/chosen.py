"""Which base is meant, and how it is loaded: the settings of the command line and of studies.

Nothing here imports torch: what cannot be a base is refused before any heavy import.
"""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smidgen.errors import UsageError
from smidgen.files.checks import check_number
from smidgen.models.names import (
    FILE_SUFFIXES,
    BasePrecision,
    is_architecture,
    is_hub_id,
    shipped_names,
)
from smidgen.models.positions import Positions, size_and_positions
from smidgen.sizes import ImageSize

if TYPE_CHECKING:
    from smidgen.core.delta import Delta
    from smidgen.models.base import Base

DEVICES = Literal["auto", "cpu", "cuda", "mps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """The pretrained base."""

    base: str
    """A shipped name (glyphs), a folder, a file (.pt, .safetensors) or a hub id."""
    codec: str | None = None
    """Codec (VAE) folder or hub id, for a base file that has none of its own."""
    image_size: ImageSize | None = None
    """Size of the images in pixels, a number or WIDTHxHEIGHT; none: what the base was trained
    for, or the delta of a DiT."""
    positions: Positions | None = None
    """Of a DiT at another --image-size than it was trained at. stretch: coordinates of positions
    cover the range that it knows; extend: they go on beyond it; none: as the delta was trained,
    else extend."""
    frequency_shift: float | None = None
    """Shift of the timestep frequencies; none: 0, that of the released weights."""

    def __post_init__(self) -> None:
        self.check_name()
        check_number("frequency_shift", self.frequency_shift)

    def check_name(self) -> None:
        """Raises: UsageError, as `check_base_name`."""
        check_base_name(self.base)

    def given(self) -> dict[str, Any]:
        """What `load_base` is told besides the name and the image size, as recipes have it."""
        names = ("codec", "positions", "frequency_shift")
        settings = {name: getattr(self, name) for name in names}
        return {name: value for name, value in settings.items() if value is not None}

    def as_trained(self, delta: Delta | None) -> BaseOptions:
        """With the image size and the positions of a delta that was trained at another size than
        that of its base, where they are not given.
        """
        size, positions = size_and_positions(delta)
        return dataclasses.replace(
            self,
            image_size=self.image_size or size,
            positions=self.positions or positions,
        )

    def load(self, **more: Any) -> Base:
        """The base that these options mean; `more` as `load_base` takes it."""
        from smidgen.models.pretrained import load_base

        return load_base(self.base, image_size=self.image_size, **self.given(), **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseOnDevice(BaseOptions):
    """The pretrained base."""

    device: DEVICES = "auto"
    """auto: the accelerator if there is one."""
    base_precision: BasePrecision | None = None
    """Number format in which its frozen weights are kept: half as many bytes in bf16 or fp16, a
    quarter in int8, an eighth in nf4 (4 bit), and the passes go on in --precision; none: as a
    pipeline's files have them."""
    offload: bool = False
    """Keep the weights of its blocks in the memory of the machine; each comes to the accelerator
    while it is computed with: for a base that is larger than the accelerator's memory."""

    def given(self) -> dict[str, Any]:
        """What `load_base` is told besides the name and the image size, as recipes have it."""
        own = {} if self.base_precision is None else {"base_precision": self.base_precision}
        return super().given() | own

    def load(self, **more: Any) -> Base:
        """The base on its device."""
        from smidgen.models.calling import device_of

        return super().load(device=device_of(self.device), offload=self.offload, **more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedBase(BaseOnDevice):
    """The pretrained base."""

    base: str
    """A shipped name (glyphs), a folder, a file (.pt, .safetensors) or a hub id; with --dry-run an
    architecture (DiT-XL/2, sd-1.5) too, which is counted without weights."""
    shard: bool = False
    """Each process keeps a part of the weights of its blocks; all of a weight is there while it is
    computed with: for several processes (torchrun) and a base that is too large for each."""

    def check_name(self) -> None:
        """As for any base, but for architectures, which `run` refuses where weights are needed."""
        if not is_architecture(self.base):
            super().check_name()

    def load(self, **more: Any) -> Base:
        """The base on its device, or the part of it that is this process's."""
        return super().load(shard=self.shard, **more)


def check_base_name(name: str) -> None:
    """Refuse early what can be no base: neither shipped, nor a path, nor the form of a hub id.

    Raises: UsageError.
    """
    if Path(name).exists() or name in shipped_names():
        return
    if is_architecture(name):
        file = "a file" if name.startswith("DiT-") else "a hub id"
        raise UsageError(
            f'"{name}" is an architecture without weights; give --base a folder or {file} '
            f"with its weights (smidgen inspect {name} needs none)"
        )
    looks_like_path = name.startswith((".", "/", "~")) or Path(name).suffix in FILE_SUFFIXES
    if looks_like_path or not is_hub_id(name):
        near = difflib.get_close_matches(name, shipped_names(), n=1)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise UsageError(
            f'no base "{name}"{hint}; shipped: {", ".join(shipped_names()) or "none"}; '
            "else give a folder, a file or a hub id (owner/name)"
        )
