"""Codecs: images to latents and back. The network is handed in as a loader and built on first use.

B images of H x W pixels, C latent channels of h x w latent pixels. Everything runs in float32.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smidgen.errors import SmidgenError
from smidgen.files.writing import whole_file
from smidgen.models.codec_kinds import CODECS
from smidgen.models.files import (
    check_safetensors,
    read_json,
    read_tensors,
    weight_files,
    write_safetensors_file,
)
from smidgen.models.schemas import Autoencoder, check_sizes

Images = Float[Tensor, "B 3 H W"]
Latents = Float[Tensor, "B C h w"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
ENCODE_PIXELS = (
    2**19
)  # of all images encoded at once: about 1 GB of activations in the released codecs
DECODE_PIXELS = 2**14  # of all images decoded at once


@runtime_checkable
class Codec(Protocol):
    """What training, sampling and the latent cache need of an autoencoder."""

    @property
    def factor(self) -> int:
        """Image pixels to a latent pixel, along one side."""
        ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def fingerprint(self) -> str:
        """The same only for a codec that gives the same latents."""
        ...

    def encode(self, images: Images) -> tuple[Latents, Latents]:
        """Mean and standard deviation of the latents of images in [-1, 1], in the base's scale."""
        ...

    def decode(self, latents: Latents) -> Images:
        """Images in [-1, 1] of latents in the base's scale."""
        ...


class AutoencoderCodec:
    """The autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752) in a folder, of
    one of the kinds in codec_kinds.py.

    `load` turns the folder into the network, in float32, at the first image: a command that fails
    before does not pay for it. Files and configuration are checked at once.

    Raises: SmidgenError if the folder lacks a file, a file is truncated, or it holds another kind
        of codec.
    """

    def __init__(self, folder: Path, load: Callable[[Path], nn.Module]) -> None:
        config = read_json(folder / "config.json", Autoencoder)
        check_sizes(config, folder / "config.json")
        kind = config.get("_class_name", "AutoencoderKL")
        if kind not in CODECS:
            known = ", ".join(CODECS)
            raise SmidgenError(f"{folder} holds a {kind}, which is no known codec: {known}")
        if kind == "AutoencoderKL" and (config.get("latents_mean") or config.get("latents_std")):
            raise SmidgenError(
                f"{folder} holds a {kind} with latent statistics, which is not known"
            )
        if kind in ("AutoencoderKL", "AutoencoderDC") and config.get("scaling_factor", 1) is None:
            raise SmidgenError(f"{folder}/config.json: scaling_factor is null; get the codec again")
        if config.get("in_channels", 3) != 3 or config.get("input_channels", 3) != 3:
            raise SmidgenError(f"{folder} holds a codec that does not read RGB images")
        self._files = weight_files(folder)
        for file in self._files:
            check_safetensors(file)
        self.folder = folder
        self._config = config
        self._kind = CODECS[kind]
        self._load = load
        self._device = torch.device("cpu")

    @property
    def factor(self) -> int:
        """Image pixels to a latent pixel, along one side."""
        return self._kind.factor(self._config)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self._kind.channels(self._config)

    @property
    def fingerprint(self) -> str:
        """The same only for the same weights and scale: a hash of both."""
        return self._digest

    def to(self, device: str | torch.device) -> AutoencoderCodec:
        """Moves the codec; it stays in float32."""
        self._device = torch.device(device)
        if "_network" in self.__dict__:
            self._network.to(self._device)
        return self

    def encode(self, images: Images) -> tuple[Latents, Latents]:
        """Mean and standard deviation of q(latent | image in [-1, 1]) in the scale of the base. Of
        images that have gradients, they flow through it.

        Raises: SmidgenError if the sides of the images are no multiples of `factor`.
        """
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor:
            raise SmidgenError(
                f"images of {width} x {height} pixels do not fit a codec that reduces by "
                f"{self.factor}; use sizes that are multiples of {self.factor}"
            )
        means, stds = [], []
        for part in images.split(max(1, ENCODE_PIXELS // (height * width))):
            mean, std = self._kind.encode(self._network, self._config, self._place(part))
            means.append(mean)
            stds.append(std)
        return torch.cat(means), torch.cat(stds)

    def decode(self, latents: Latents) -> Images:
        """Images in [-1, 1]; the same for a latent, bit for bit, whatever else is in the batch. Of
        latents that have gradients, they flow through it.

        Raises: SmidgenError for another number of latent channels.
        """
        if latents.shape[1] != self.latent_channels:
            raise SmidgenError(
                f"latents of {latents.shape[1]} channels for a codec with {self.latent_channels}; "
                "use the codec that the base was trained with"
            )
        pixels = latents.shape[2] * latents.shape[3] * self.factor**2
        # Kernels are chosen by the batch size and round differently: always run the same one.
        num_at_once = min(16, max(1, DECODE_PIXELS // pixels))
        images = []
        for part in latents.split(num_at_once):
            whole = part.new_zeros(num_at_once, *part.shape[1:])
            whole[: len(part)] = part
            decoded = self._kind.decode(self._network, self._config, self._place(whole))
            images.append(decoded[: len(part)].clamp(-1, 1))
        return torch.cat(images)

    def save(self, folder: Path) -> None:
        """Copies the codec, its weights as one plain file.

        Raises: SmidgenError if the disk refuses.
        """
        with whole_file(folder / "config.json") as partial:
            shutil.copyfile(self.folder / "config.json", partial)
        if len(self._files) > 1:
            tensors = {k: t for file in self._files for k, t in read_tensors(file).items()}
            write_safetensors_file(tensors, folder / WEIGHTS)
            return
        with whole_file(folder / WEIGHTS) as partial:
            shutil.copyfile(self._files[0], partial)

    @cached_property
    def _digest(self) -> str:
        public = {k: v for k, v in self._config.items() if not k.startswith("_")}
        digest = hashlib.sha256()
        for path in self._files:
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        digest.update(json.dumps(public, sort_keys=True).encode())
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def _network(self) -> Any:
        return self._load(self.folder).to(self._device).requires_grad_(False).eval()

    def _place(self, values: Tensor) -> Tensor:
        return values.to(self._device, torch.float32)


def save_codec(codec: Codec, folder: Path) -> None:
    """Writes a codec as a diffusers `vae` folder.

    Raises: SmidgenError for a codec that did not come from such a folder, or if the disk refuses.
    """
    if not isinstance(codec, AutoencoderCodec):
        raise SmidgenError(f"a {type(codec).__name__} has no files to write as a diffusers vae")
    codec.save(folder)
