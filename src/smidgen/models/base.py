"""A base: the frozen denoiser with everything needed to train on it and sample from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from smidgen.core.fingerprint import fingerprint
from smidgen.diffusion.schedule import Schedule
from smidgen.hosts.host import Host
from smidgen.models.codec import AutoencoderCodec, Codec
from smidgen.models.dit import DiT


@dataclass(kw_only=True, eq=False)
class Base:
    """A pretrained diffusion model; `to` moves it, nothing else changes it.

    `image_size` is in pixels. `class_names` has one name for each row of the label table but the
    last, the null label.
    """

    name: str
    denoiser: DiT
    codec: Codec
    class_names: tuple[str, ...]
    schedule: Schedule
    host: Host
    fingerprint: str
    image_size: int

    @property
    def num_classes(self) -> int:
        """Classes of the base, the null label not counted."""
        return self.denoiser.config.num_classes

    @property
    def null_label(self) -> int:
        """The label of no class, for classifier-free guidance."""
        return self.num_classes

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.denoiser.pos_embed.device

    def to(
        self, *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Base:
        """Moves denoiser and codec of this base, casts the denoiser; the codec stays in float32."""
        self.denoiser.to(device=device, dtype=dtype)
        if device is not None and isinstance(self.codec, AutoencoderCodec):
            self.codec.to(device)
        return self


def base_fingerprint(denoiser: DiT) -> str:
    """The fingerprint of a denoiser's weights without the computed position table.

    The same weights in another file format or precision match, and so do those at another image
    size.
    """
    state = denoiser.state_dict()
    return fingerprint({name: t for name, t in state.items() if name != "pos_embed"})
