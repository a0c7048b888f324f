"""What a base's name means here: its folder or file, what that says of itself, its codec."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from smidgen.errors import SmidgenError, UsageError
from smidgen.models.codec import AutoencoderCodec
from smidgen.models.components import load_autoencoder
from smidgen.models.files import read_json
from smidgen.models.hub import download
from smidgen.models.names import EMBEDDED, is_architecture, on_hub, shipped_names
from smidgen.models.pipelines import INDEX
from smidgen.models.schemas import Folder
from smidgen.models.single_files import folder_of, is_single_file


def locate(name: str | Path) -> Path:
    """The folder or file that `name` means; a shipped name comes before a folder of that name."""
    if isinstance(name, str) and name in shipped_names():
        return EMBEDDED / name
    path = Path(name).expanduser()
    if path.exists():
        return folder_of(path) if is_single_file(path) else path
    if is_architecture(name):
        remedy = "its folder of diffusers, or a hub id as owner/name"
        if str(name).startswith("DiT-"):
            remedy = "the file and its codec: --base DiT-XL-2-256x256.pt --codec FOLDER"
        raise UsageError(f'"{name}" is an architecture without weights; give {remedy}')
    if on_hub(name):
        return download(str(name))
    raise UsageError(
        f'no file or folder "{name}"; shipped bases: {", ".join(shipped_names()) or "none"}; '
        "or give a hub id as owner/name"
    )


def describe(source: Path) -> Mapping[str, Any]:
    """What a folder says about its base: our config.json, or the model_index.json of diffusers."""
    for name in (INDEX, "config.json"):
        if source.is_dir() and (source / name).is_file():
            return read_json(source / name, Folder)
    return {}


def codec_source(name: str | Path, source: Path, codec: str | Path | None) -> str | Path:
    """Where the codec of the base of this name lies, `codec` if that is given.

    Raises: UsageError if there is none.
    """
    if codec is not None:
        return codec
    if (source / "vae" / "config.json").is_file():
        return source / "vae"
    raise UsageError(
        f'"{name}" has no codec: add --codec FOLDER (codec=... in Python), a diffusers vae folder '
        "such as that of stabilityai/sd-vae-ft-ema"
    )


def load_codec(source: str | Path, *, device: str | torch.device = "cpu") -> AutoencoderCodec:
    """The codec in a diffusers vae folder, a base's folder, a shipped base or a hub id.

    Raises: UsageError for an unknown name or a missing folder; SmidgenError for no codec there, or
        one that cannot be read.
    """
    folder = locate(source)
    if (folder / "vae" / "config.json").is_file():
        folder = folder / "vae"
    if not folder.is_dir() or not (folder / "config.json").is_file():
        raise SmidgenError(
            f"{folder} is no codec: expected a folder with config.json and "
            "diffusion_pytorch_model.safetensors, or one that holds it as vae/"
        )
    return AutoencoderCodec(folder, load_autoencoder).to(device)
