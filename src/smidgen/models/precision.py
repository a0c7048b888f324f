"""In which precision the frozen weights of a base are kept, as asked for, else as their files have
them. Where is in placing.py; what the network computes in is another matter (core/storage.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import torch
from torch import nn

from smidgen.core.quantising import MADE, quantise
from smidgen.core.weights import open_safetensors
from smidgen.core.widening import Quantised
from smidgen.errors import UsageError
from smidgen.models.calling import DTYPES
from smidgen.models.names import BasePrecision

IN_FILES = {"F64": "fp32", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}


def check_base_precision(asked: str | None) -> None:
    """Raises: UsageError for a word that is none."""
    if asked is not None and asked not in get_args(BasePrecision):
        known = ", ".join(get_args(BasePrecision))
        raise UsageError(f'unknown base_precision "{asked}"; choose from: {known}')


def kept_in(asked: str | None, dtype: torch.dtype, files: Sequence[Path] = ()) -> torch.dtype:
    """The precision of the weights of a network that computes in `dtype`: the one `asked` for;
    None: that of `files` where it computes in float32, else `dtype`. With int8 and nf4 that is the
    one of all that `quantise_as` leaves, as with None.

    Raises: UsageError for one that is wider than what it computes in; SmidgenError for damaged
        files.
    """
    check_base_precision(asked)
    if dtype != torch.float32:
        if asked == "fp32":
            raise UsageError(
                f"base_precision fp32 is wider than the {dtype} that the base is loaded to compute "
                "in; leave it out"
            )
        return DTYPES.get(asked or "", dtype)
    return DTYPES[asked] if asked in DTYPES else DTYPES[precision_of(files)]


def quantise_as(network: nn.Module, asked: str | None) -> None:
    """`network` with its weights in 8 or 4 bit, if that is `asked` for: after the fingerprint was
    taken, which is that of the weights as they came.
    """
    if asked in MADE:
        quantise(network, cast("Quantised", asked))


def precision_of(files: Sequence[Path]) -> str:
    """The half precision that all weights in these safetensors files are in, by their headers; fp32
    of others, mixed ones, quantised ones and none. Floats of 8 bit fit into any.
    """
    found: set[str] = set()
    for path in files:
        with open_safetensors(path) as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    known = {IN_FILES.get(kind, "fp32") for kind in found if not kind.startswith("F8")}
    return known.pop() if len(known) == 1 else "fp32"
