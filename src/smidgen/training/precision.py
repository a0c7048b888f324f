"""The number format of the passes where the settings leave it to the machine (precision "auto").

Told by the instructions of the device and the shapes of the network, never by a clock, so that one
recipe gives one delta on one machine (docs/decisions/0018-precision-auto.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from smidgen.models.calling import dtype_of
from smidgen.training.config import AUTO, TrainingConfig
from smidgen.training.recipe import read_recipe

Fast = Literal["fp32", "bf16"]

# Measured by bench/precision.py on one CPU with AMX, a step in bf16 as a share of one in float32:
LEAST_WORK = 2e8  # latent pixels times weights of a linear; below it bf16 costs more than it saves
MOST_CONVOLUTIONS = 0.1  # of the weights: UNets take 0.74 to 1.12, by their sizes


def with_precision(
    config: TrainingConfig,
    network: nn.Module,
    latent_shape: Sequence[int],
    device: torch.device,
    folder: Path | None = None,
) -> TrainingConfig:
    """With what "auto" stands for: the precision of the run in `folder`, which goes on in it on any
    machine, or where there is none the fast one.
    """
    if config.precision != AUTO:
        return config
    recipe = None if folder is None else read_recipe(folder)
    before = None if recipe is None else recipe.get("precision")
    if before in get_args(Fast):
        return replace(config, precision=before)
    pixels = config.rows * math.prod(latent_shape[1:])
    return replace(config, precision=fast_precision(network, pixels, device))


def fast_precision(network: nn.Module, pixels: int, device: torch.device) -> Fast:
    """bf16 where a step on so many latent pixels is clearly faster in it, else fp32.

    On a GPU where that computes in bf16 (one that is not here does); on a CPU with AMX, for a
    network of linears with enough to do. A base that was loaded in another precision than float32
    stays in that.
    """
    if dtype_of(network) != torch.float32:
        return "fp32"
    if device.type == "cuda":
        here = torch.cuda.is_available()
        computes = not here or torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if computes else "fp32"
    gains = device.type == "cpu" and has_amx() and pixels * mean_linear(network) >= LEAST_WORK
    return "bf16" if gains else "fp32"


def has_amx() -> bool:
    """Whether this processor multiplies matrices of bf16. The vectors of bf16 of AVX-512, which
    other processors have alone, are no faster than those of float32.
    """
    return torch.cpu._is_amx_tile_supported()


def mean_linear(network: nn.Module) -> float:
    """Weights of a linear of the network at the mean, 0 for a network of convolutions."""
    linears = [m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear)]
    others = sum(m.weight.numel() for m in network.modules() if isinstance(m, _ConvNd))
    if others > MOST_CONVOLUTIONS * (sum(linears) + others):
        return 0.0
    return sum(linears) / len(linears)
