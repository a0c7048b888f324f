"""LoRA files on disk: which file a path means, and what its metadata says about alpha."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.interop.lora_keys import check_kinds
from smidgen.models.files import read_json, read_tensors

DIFFUSERS_METADATA = "lora_adapter_metadata"


def locate(path: Path) -> tuple[Path, Mapping[str, Any]]:
    """The file of tensors and what it or its folder says about alpha, by component and module."""
    if path.is_dir():
        candidates = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
        inside = next((path / name for name in candidates if (path / name).is_file()), None)
        if inside is None:
            raise SmidgenError(
                f"{path} holds none of {', '.join(candidates)}; give the LoRA's file"
            )
        path = inside
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.is_file():
        return path, read_json(beside)
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(DIFFUSERS_METADATA)
            return path, {} if text is None else dict(json.loads(text))
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise SmidgenError(f"{path} is damaged ({error}); get the file again") from error
    return path, {}


class Alphas:
    """The scale of each module's LoRA, from the configuration that PEFT and diffusers write."""

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        own: dict[str, Any] = {}
        for key, value in config.items():
            component, dot, rest = key.partition(".")
            own[rest if dot and component in ("unet", "transformer") else key] = value
        kind = own.get("peft_type", "LORA")
        if kind != "LORA" or own.get("use_dora"):
            given = "DoRA" if own.get("use_dora") else kind
            raise SmidgenError(f"{path} is {given}; only plain LoRA is read")
        self.alpha = own.get("lora_alpha")
        self.patterns: Mapping[str, float] = own.get("alpha_pattern") or {}
        self.root = bool(own.get("use_rslora"))

    def scale(self, module: str, rank: int, alpha: float | None) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA; without an alpha 1."""
        if alpha is None:
            alpha = self._pattern(module)
        if alpha is None:
            return 1.0
        return float(alpha) / (math.sqrt(rank) if self.root else rank)

    def _pattern(self, module: str) -> float | None:
        """As PEFT reads it: patterns are regular expressions for the end of the name."""
        for pattern, alpha in self.patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return alpha
        return self.alpha


def read_lora_file(path: Path) -> tuple[Path, dict[str, Tensor], Alphas]:
    """The file that `path` means, its tensors, and the scales that it or its folder gives.

    Raises: SmidgenError if the file is damaged, or holds anything but plain LoRA of a denoiser (all
        kinds are named).
    """
    path, config = locate(path)
    tensors = read_tensors(path)
    check_kinds(tensors, path)
    return path, tensors, Alphas(config, path)
