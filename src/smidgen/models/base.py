"""A base: the frozen denoiser with everything needed to train on it and sample from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smidgen.core.delta import Delta
from smidgen.core.fingerprint import fingerprint
from smidgen.core.storage import cast, move, runs_on
from smidgen.diffusion.process import Process
from smidgen.errors import UsageError
from smidgen.hosts.family import Family
from smidgen.hosts.host import Host, find_family
from smidgen.models.calling import DTYPES, dtype_of
from smidgen.models.codec import AutoencoderCodec, Codec
from smidgen.models.conditioner import Conditioner, Conditions, labels_alone
from smidgen.models.positions import Positions
from smidgen.sizes import ImageSize, Sides


@dataclass(kw_only=True, eq=False)
class Base:
    """A pretrained diffusion model; `to` moves it, nothing else changes it.

    `image_size` is what is drawn and trained on, `sides` tells which sizes could be. `class_names`
    has one name for each row of the label table but the last, the null label; a base with a
    `conditioner` reads prompts and has none. `process` is what the denoiser was trained on.
    `positions` are those of a DiT at another image size than its own, None at that and of other
    networks. `source` is the folder or file that the weights were read from, None if they were made
    in this process; `given` is what `load_base` must be given besides the name, and the image size,
    to load the same again.
    """

    name: str
    denoiser: nn.Module
    codec: Codec
    class_names: tuple[str, ...]
    process: Process
    host: Host
    fingerprint: str
    image_size: ImageSize
    sides: Sides
    positions: Positions | None = None
    conditioner: Conditioner | None = None
    source: Path | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def family(self) -> Family:
        """How the denoiser is called."""
        return find_family(self.denoiser)

    @property
    def num_classes(self) -> int:
        """Classes of the base, the null label not counted; 0 of one that reads prompts."""
        return len(self.class_names)

    @property
    def null_label(self) -> int:
        """The label of no class, for classifier-free guidance."""
        return self.num_classes

    @property
    def device(self) -> torch.device:
        """Where the denoiser computes."""
        return runs_on(self.denoiser)

    @property
    def precision(self) -> str:
        """The number format in which the denoiser computes, as settings call it."""
        dtype = dtype_of(self.denoiser)
        return next((name for name, one in DTYPES.items() if one == dtype), str(dtype))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of a latent of this image size."""
        factor = self.codec.factor
        width, height = self.image_size
        return self.codec.latent_channels, height // factor, width // factor

    def conditions(
        self, prompts: Sequence[str] = (), negative: str = "", delta: Delta | None = None
    ) -> Conditions:
        """What labels mean to the denoiser: themselves, or the prompts that they count, the label
        behind the last prompt meaning the `negative` one, as text encoders with `delta` read them.

        Raises: UsageError for prompts for a base that knows classes, or none for one that reads
            them; SmidgenError as `Conditioner.encode`.
        """
        if self.conditioner is None:
            if prompts:
                raise UsageError(
                    f'base "{self.name}" knows classes and reads no prompts; give classes instead'
                )
            return labels_alone
        if not prompts:
            raise UsageError(f'base "{self.name}" reads prompts: give at least one')
        return self.conditioner.conditions(
            [*prompts, negative], self.device, dtype_of(self.denoiser), delta
        )

    def to(
        self, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Base:
        """Moves denoiser and codec of this base, casts the denoiser; the codec stays in float32."""
        if device is not None:
            move(self.denoiser, device)
        if dtype is not None:
            cast(self.denoiser, dtype)
        if device is not None and isinstance(self.codec, AutoencoderCodec):
            self.codec.to(device)
        return self


def base_fingerprint(denoiser: nn.Module) -> str:
    """The fingerprint of a denoiser's weights without a DiT's computed position table.

    The same weights in another file format or precision match, and so do those at another image
    size.
    """
    state = denoiser.state_dict()
    return fingerprint({name: t for name, t in state.items() if name != "pos_embed"})
