"""LoRA files on disk: which one a path means, its tensors, and what is said of them beside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from smidgen.core.weights import checked, open_safetensors
from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, parse_json
from smidgen.interop.lora_keys import check_kinds, is_of_text, parse_key
from smidgen.interop.peft_config import Scaling, read_config
from smidgen.models.files import read_json, read_tensors

DIFFUSERS_METADATA = "lora_adapter_metadata"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
FILES = (PEFT_FILE, "pytorch_lora_weights.safetensors")

TextEncoder = Literal["refuse", "leave-out"]


@dataclass(frozen=True, kw_only=True)
class LoraFile:
    """The tensors of a file, without those of text encoders, of which it had `num_left_out`."""

    path: Path
    tensors: Mapping[str, Tensor]
    scaling: Scaling
    num_left_out: int


def read_lora_file(path: Path, text_encoder: TextEncoder = "refuse") -> LoraFile:
    """The file that `path` means, or the folder of a PEFT adapter.

    Raises: SmidgenError if the file is damaged, or holds anything but plain LoRA of a denoiser (all
        kinds are named), or numbers that are no weights; if its configuration sets what is not
        read.
    """
    path = _locate(path)
    scaling = read_config(_config_of(path), path)
    tensors = read_tensors(path)
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if text_encoder == "refuse" or not is_of_text(name)
    }
    check_kinds(kept, path)
    parts = {name: parsed for name in kept if (parsed := parse_key(name)) is not None}
    weights = {name: kept[name] for name, (_, part) in parts.items() if part != "alpha"}
    if not weights:
        raise SmidgenError(f"{path} holds no LoRA of a denoiser")
    return LoraFile(
        path=path,
        tensors=kept | checked(weights, path),
        scaling=scaling,
        num_left_out=len(tensors) - len(kept),
    )


def _locate(path: Path) -> Path:
    if not path.is_dir():
        return path
    inside = next((path / name for name in FILES if (path / name).is_file()), None)
    if inside is None:
        raise SmidgenError(f"{path} holds none of {', '.join(FILES)}; give the LoRA's file")
    return inside


def _config_of(path: Path) -> Mapping[str, Any]:
    """PEFT's configuration, beside its file or, by diffusers, in the metadata."""
    if path.name == PEFT_FILE:
        if not (beside := path.with_name(PEFT_CONFIG)).is_file():
            raise SmidgenError(
                f"{path} is PEFT's, and {PEFT_CONFIG}, which has its alpha, is not beside it; "
                "copy it there, or rename the file to read it with a scale of 1"
            )
        return read_json(beside)
    if path.suffix != ".safetensors":
        return {}
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get(DIFFUSERS_METADATA)
    try:
        return {} if text is None else parse_json(text, dict[str, Any])
    except Unreadable as error:
        raise SmidgenError(f"{path}: its {DIFFUSERS_METADATA}: {error.reason}") from error
