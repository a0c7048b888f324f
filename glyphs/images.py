"""Batches of coloured glyphs as tensors, and the little that every training here shares.

Images are float32 (B, 3, 32, 32) in [-1, 1]. Settings are TOML files, results JSON files.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import tomllib
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from glyphs.colour import colour, draw_colours
from glyphs.render import Glyphs

RESULTS = Path(__file__).with_name("results")
EMBEDDED = Path("src/smidgen/models/embedded")


def to_images(rgb: np.ndarray) -> Tensor:
    """RGB (B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(rgb).permute(0, 3, 1, 2).float().div_(127.5).sub_(1).contiguous()


def colour_masks(masks: np.ndarray, generator: np.random.Generator) -> Tensor:
    """Masks (B, 32, 32) in colours drawn from the generator -> images (B, 3, 32, 32)."""
    ink, ground = draw_colours(len(masks), generator)
    return to_images(colour(masks, ink, ground))


def flatten(glyphs: Glyphs, test: bool) -> tuple[np.ndarray, np.ndarray]:
    """Masks (N, 32, 32) and labels (N,) of the training or of the unseen families."""
    masks = glyphs.masks[glyphs.test == test]
    fonts, classes = masks.shape[:2]
    return masks.reshape(-1, *masks.shape[2:]), np.tile(np.arange(classes), fonts)


def family_weights(family: np.ndarray) -> np.ndarray:
    """Weight of each font (F,): one over the square root of its family's number of fonts.

    Some families have 150 fonts of one design, most have one.
    """
    _, inverse, counts = np.unique(family, return_inverse=True, return_counts=True)
    return 1 / np.sqrt(counts[inverse])


def read_settings(path: Path) -> dict[str, Any]:
    """The keyword arguments of a training's settings."""
    return tomllib.loads(path.read_text())


def machine() -> str:
    """Processor and number of cores."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def write_result(name: str, command: str, fields: dict[str, Any]) -> Path:
    """Writes results/<name>.json: the fields, and what is needed to repeat them."""
    packages = ("torch", "diffusers", "numpy", "pillow")
    header = {
        "command": command,
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(header | fields, indent=2) + "\n")
    return path


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Saves nested dicts and lists of tensors and numbers in one step: a kill leaves the old file
    or the new one. safetensors, with the nesting as JSON beside the tensors.
    """
    tensors: dict[str, Tensor] = {}

    def pack(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors[str(len(tensors))] = value.detach().clone(memory_format=torch.contiguous_format)
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, dict):
            return {"dict": [[key, pack(item)] for key, item in value.items()]}
        return [pack(item) for item in value] if isinstance(value, list | tuple) else value

    nesting = json.dumps(pack(state))
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"state": nesting})
    partial.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` saved."""
    with safe_open(path, framework="pt") as file:
        nesting = json.loads(file.metadata()["state"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    def unpack(value: Any) -> Any:
        if isinstance(value, dict) and "tensor" in value:
            return tensors[value["tensor"]]
        if isinstance(value, dict):
            return {key: unpack(item) for key, item in value["dict"]}
        return [unpack(item) for item in value] if isinstance(value, list) else value

    return unpack(nesting)


def log(message: str) -> None:
    """One line with the time of day on stderr."""
    print(time.strftime("%H:%M:%S"), message, file=sys.stderr, flush=True)
