"""Tensor files and JSON files: read with clear errors, written whole or not at all.

Nothing here knows a model. Tensors come back mapped from the disk where the format allows it, so
that a file of gigabytes costs memory only for what is used.
"""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.files.writing import whole_file

PICKLE_SUFFIXES = (".pt", ".pth")
RECORD = "smidgen"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` or a PyTorch `.pt` file, in the file's own precision.

    A training checkpoint gives the dict under its key "ema", else "model", as the released sampling
    code reads it.

    Raises:
        SmidgenError: no such file, another format, truncated, or a pickle that holds more than
            tensors.
    """
    if not path.is_file():
        raise SmidgenError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise SmidgenError(
                f"{path} is not a whole safetensors file ({_first_line(error)}); get the file again"
            ) from error
    if path.suffix in PICKLE_SUFFIXES:
        return _only_tensors(_read_pickle(path), path)
    raise SmidgenError(
        f'{path}: weights are read from .safetensors, .pt and .pth files, not "{path.suffix}"; '
        "save the tensors as safetensors first"
    )


def check_shapes(
    expected: Mapping[str, torch.Size], given: Mapping[str, Tensor], source: Path
) -> None:
    """Compares names and shapes of a file's tensors with what the configuration asks for.

    Raises:
        SmidgenError: anything missing, unknown or of another shape; names up to three.
    """
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is unknown" for name in given if name not in expected]
    for name, shape in expected.items():
        if name in given and given[name].shape != shape:
            wrong.append(f"{name} is {tuple(given[name].shape)}, expected {tuple(shape)}")
        elif name in given and not given[name].is_floating_point():
            wrong.append(f"{name} holds {given[name].dtype}, expected floating point")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise SmidgenError(f"{source} does not fit its model: {'; '.join(wrong[:3])}{more}")


def check_safetensors(path: Path) -> None:
    """Reads the header only: existence, format and length of a safetensors file.

    Raises:
        SmidgenError: the file is missing, foreign or truncated.
    """
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise SmidgenError(
            f"{path} is not a whole safetensors file ({_first_line(error)}); get the file again"
        ) from error


def refuse_pickles(folder: Path) -> None:
    """Explains that weights which are there only as `.bin` are not read.

    Raises:
        SmidgenError: the folder holds such a file.
    """
    if list(folder.glob("*.bin")):
        raise SmidgenError(
            f"{folder} has its weights only as a pickle (.bin), which can run code and is not "
            "read; save it once with diffusers' save_pretrained(..., safe_serialization=True)"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        SmidgenError: missing, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SmidgenError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SmidgenError(f"{path} is not valid JSON: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise SmidgenError(f"{path} holds a JSON {type(value).__name__}; expected an object")
    return value


def write_safetensors_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors that share no memory. Raises: SmidgenError if the disk refuses."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # diffusers and transformers refuse files without this key.
    with whole_file(path) as partial:
        save_file(dense, partial, metadata={"format": "pt"})


def write_pickle(tensors: Mapping[str, Tensor], path: Path, record: Mapping[str, Any]) -> None:
    """Writes a dict of tensors with torch.save, and `record` where `recorded` finds it.

    Raises:
        SmidgenError: the disk refuses.
    """
    # A slice of a larger tensor would be saved with all of its storage.
    dense = OrderedDict((name, _own_storage(t.detach().cpu())) for name, t in tensors.items())
    # PyTorch keeps the versions of modules here and ignores the names of modules it has not.
    dense._metadata = {**getattr(tensors, "_metadata", {}), RECORD: dict(record)}  # pyright: ignore[reportAttributeAccessIssue]
    with whole_file(path) as partial:
        torch.save(dense, partial)


def recorded(tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """What `write_pickle` recorded beside these tensors, just read; empty for foreign files."""
    metadata = getattr(tensors, "_metadata", None)
    record = metadata.get(RECORD) if isinstance(metadata, dict) else None
    return record if isinstance(record, dict) else {}


def _read_pickle(path: Path) -> Any:
    # The released training code keeps its command line beside the weights: a holder of values.
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            # Only the zip form of torch 1.6 and later can be mapped.
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            if "Unsupported" in str(error) or "GLOBAL" in str(error):
                raise SmidgenError(
                    f"{path} holds Python objects besides tensors and is refused, because loading "
                    "those can run any code; give a file with a plain dict of tensors"
                ) from error
            raise SmidgenError(f"{path} is not a whole PyTorch file; get the file again") from error
        except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
            raise SmidgenError(
                f"{path} is not a whole PyTorch file ({_first_line(error)}); get the file again"
            ) from error


def _only_tensors(value: Any, path: Path) -> dict[str, Tensor]:
    for key in ("ema", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
            break
    if not isinstance(value, dict) or not value:
        raise SmidgenError(f"{path} holds no dict of tensors; expected a state dict")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise SmidgenError(
                f"{path}: entry {key!r} is a {type(tensor).__name__}, not a tensor; "
                "expected a state dict, or one under the key ema or model"
            )
    return value


def _own_storage(tensor: Tensor) -> Tensor:
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.contiguous().clone()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
