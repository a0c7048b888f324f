"""Tensor files and JSON files: read with clear errors, written whole or not at all.

Nothing here knows a model; what every tensor must be is in core/weights.py. Tensors come back
mapped from the disk where the format allows it, so that a file of gigabytes costs memory only for
what is used.
"""

from __future__ import annotations

import argparse
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from smidgen.core.weights import check_names, open_safetensors, read_safetensors
from smidgen.errors import SmidgenError
from smidgen.files import reading
from smidgen.files.writing import whole_file
from smidgen.models.schemas import Shards

WEIGHTS = ("diffusion_pytorch_model", "model")  # stems of the files of diffusers and transformers
VARIANTS = (None, "fp16", "bf16")  # in which their names say that they are; the first is taken
WEIGHT_FILE = (
    re.compile(  # the variant stands before or behind the number of a shard, or at the end
        rf"(?:{'|'.join(WEIGHTS)})(?:-\d+-of-\d+)?(?:\.(\w+?))?(?:-\d+-of-\d+)?\.safetensors"
        r"(?:\.index(?:\.(\w+))?\.json)?"
    )
)
PICKLE_SUFFIXES = (".pt", ".pth")
RECORD = "smidgen"
HOLDERS = ("ema", "model", "state_dict", "model_state_dict", "module")  # of tensors, in a `.pt`
MOST_HOLDERS = 4  # one within the other
# what torch.compile, FSDP and activation checkpointing put around a module, and so into names
AROUND = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
PARALLEL = "module."  # before all names, of DataParallel and DistributedDataParallel
MOST_REPEATED = 4  # bytes of tensors to a byte of their file, where some share their memory


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The named tensors of a `.safetensors` or a PyTorch `.pt` file, in the file's own precision,
    under the names that the module itself gives them (`plain_names`). Their values are not checked.

    A training checkpoint gives the dict under its key "ema", else "model", as the released sampling
    code reads it, else the first of the other `HOLDERS`.

    Raises: SmidgenError for no such file, one of another format or truncated, or a pickle with more
        than tensors.
    """
    reading.size_of(path)
    if path.suffix == ".safetensors":
        return plain_names(read_safetensors(path)[0], path)
    if path.suffix in PICKLE_SUFFIXES:
        return plain_names(_only_tensors(_read_pickle(path), path), path)
    if path.suffix == ".ckpt":
        raise SmidgenError(
            f"{path} is a pickle, which can run code and is not read; convert it once, where you "
            'trust it: python -c "import torch, safetensors.torch as s; '
            "d = torch.load('IN.ckpt', map_location='cpu', weights_only=True); "
            "s.save_file({k: v.clone().contiguous() for k, v in d.get("
            "'state_dict', d).items() if hasattr(v, 'clone')}, 'OUT.safetensors')\""
        )
    raise SmidgenError(
        f'{path}: weights are read from .safetensors, .pt and .pth files, not "{path.suffix}"; '
        "save the tensors as safetensors first"
    )


def plain_names(tensors: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The tensors under the names that their module gave them before it was wrapped: without
    `AROUND`, wherever that stands, and without "module." before all of them.

    Raises: SmidgenError if only some begin with "module.", or two would have one name.
    """
    plain: dict[str, str] = {}  # -> the name in the file
    for name in tensors:
        new = ".".join(part for part in name.split(".") if part not in AROUND)
        if new in plain:
            raise SmidgenError(
                f"{source} has both {plain[new]} and {name}: two models in one file; save one alone"
            )
        plain[new] = name
    wrapped = [name for name in plain if name.startswith(PARALLEL)]
    if 0 < len(wrapped) < len(plain):
        other = next(name for name in plain if not name.startswith(PARALLEL))
        raise SmidgenError(
            f'{source} mixes names with "{PARALLEL}" before them ({wrapped[0]}) and without '
            f"({other}); save one model alone"
        )
    if list(plain) == list(tensors) and not wrapped:
        return tensors
    start = len(PARALLEL) if wrapped else 0
    return {new[start:]: tensors[name] for new, name in plain.items()}


def check_safetensors(path: Path) -> None:
    """Reads the header only: existence, format and length of a safetensors file.

    Raises: SmidgenError if the file is missing, foreign or truncated.
    """
    with open_safetensors(path):
        pass


def read_shards(index: Path) -> list[Path]:
    """The files beside an index of weights in several files.

    Raises: SmidgenError if it is no such index, or names files elsewhere.
    """
    names = sorted(set(read_json(index, Shards)["weight_map"].values()))
    if any(Path(name).name != name for name in names):
        raise SmidgenError(f"{index} names no files of its own folder; get the folder again")
    return [index.parent / name for name in names]


def weight_files(folder: Path) -> list[Path]:
    """The files of a component's weights as diffusers or transformers writes them: those that an
    index names, or one; of the `VARIANTS` the first that is there.

    Raises: SmidgenError if there are none, or only pickles.
    """
    variant = variant_of(folder)
    for stem in WEIGHTS:
        if (index := folder / _named(f"{stem}.safetensors.index.json", variant)).is_file():
            return read_shards(index)
        if (file := folder / _named(f"{stem}.safetensors", variant)).is_file():
            return [file]
    refuse_pickles(folder)
    variants = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = (
        f"{variants[0]} is a variant: rename it to use it" if variants else "get the folder again"
    )
    raise SmidgenError(f"{folder} holds no {WEIGHTS[0]}.safetensors; {hint}")


def variant_of(folder: Path) -> str | None:
    """The variant of a component's weights that is read: None, the plain files, if those are there,
    or nothing is.
    """
    for variant in VARIANTS:
        names = (f"{stem}.safetensors{index}" for stem in WEIGHTS for index in ("", ".index.json"))
        if any((folder / _named(name, variant)).is_file() for name in names):
            return variant
    return None


def second_copies(files: Iterable[str]) -> list[str]:
    """Those of a model's files, by their paths, that hold weights which are not read, because they
    are there in a variant that comes first, or are of one that is unknown.
    """
    found: dict[tuple[str, str | None], list[str]] = {}
    for name in files:
        folder, _, file = name.rpartition("/")
        if match := WEIGHT_FILE.fullmatch(file):
            found.setdefault((folder, match[1] or match[2]), []).append(name)
    folders = {folder for folder, _ in found}
    read = {
        (folder, next((v for v in VARIANTS if (folder, v) in found), None)) for folder in folders
    }
    return [name for place, names in found.items() if place not in read for name in names]


def _named(file: str, variant: str | None) -> str:
    """The name of a file of weights, or of their index, in a variant."""
    stem, _, suffix = file.rpartition(".")
    return file if variant is None else f"{stem}.{variant}.{suffix}"


def refuse_pickles(folder: Path) -> None:
    """Explains that weights which are there only as `.bin` are not read.

    Raises: SmidgenError if the folder holds such a file.
    """
    if list(folder.glob("*.bin")):
        raise SmidgenError(
            f"{folder} has its weights only as a pickle (.bin), which can run code and is not "
            "read; save it once with diffusers' save_pretrained(..., safe_serialization=True)"
        )


def read_json(path: Path, schema: type = dict) -> dict[str, Any]:
    """The object in a JSON file; the values that `schema` (a TypedDict) names are of its types.

    Raises: SmidgenError if it is missing, not JSON, no object, or has a value of another type.
    """
    # diffusers writes -Infinity: lambda_min_clipped of a DPMSolverMultistepScheduler
    value = reading.read_json(path, dict[str, Any], constants=True)
    try:
        reading.fit(value, schema)
    except reading.Unreadable as error:
        raise SmidgenError(f"{path}: {error.reason}; get the file again") from error
    return value


def write_safetensors_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors that share no memory. Raises: SmidgenError if the disk refuses."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # diffusers and transformers refuse files without this key.
    with whole_file(path) as partial:
        save_file(dense, partial, metadata={"format": "pt"})


def write_pickle(tensors: Mapping[str, Tensor], path: Path, record: Mapping[str, Any]) -> None:
    """Writes a dict of tensors with torch.save, and `record` where `recorded` finds it.

    Raises: SmidgenError if the disk refuses.
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
        except Exception as error:  # damaged bytes give whatever they lead the unpickler to
            unsafe = isinstance(error, pickle.UnpicklingError) and (
                "Unsupported" in str(error) or "GLOBAL" in str(error)
            )
            if unsafe:
                raise SmidgenError(
                    f"{path} holds Python objects besides tensors and is refused, because loading "
                    "those can run any code; give a file with a plain dict of tensors"
                ) from error
            reason = reading.in_one_line(error)
            raise SmidgenError(
                f"{path} is not a whole PyTorch file ({reason}); get the file again"
            ) from error


def _only_tensors(value: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(MOST_HOLDERS):
        inner = value if isinstance(value, dict) else {}
        held = (inner[key] for key in HOLDERS if isinstance(inner.get(key), dict))
        value = next(held, value)
    if not isinstance(value, dict) or not value:
        raise SmidgenError(f"{path} holds no dict of tensors; expected a state dict")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise SmidgenError(
                f"{path}: entry {str(key)[:100]!r} is a {type(tensor).__name__}, not a tensor; "
                f"expected a state dict, or one under a key such as {', '.join(HOLDERS[:3])}"
            )
    check_names(value, path)
    plain = all(t.layout is torch.strided and t.device.type == "cpu" for t in value.values())
    size = sum(tensor.nbytes for tensor in value.values()) if plain else 0
    if not plain or size > MOST_REPEATED * path.stat().st_size:
        what = f"{size:,} bytes of tensors" if plain else "sparse tensors, or some without values"
        raise SmidgenError(f"{path} claims {what}; expected a state dict of plain tensors")
    return value


def _own_storage(tensor: Tensor) -> Tensor:
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.contiguous().clone()
