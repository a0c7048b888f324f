"""The files of the latent cache: safetensors shards of mean and std (n, V, C, h, w).

n images, V views (2 with flip), C latent channels. A shard is named by the SHA-256 of its bytes, is
written under a temporary name and renamed, and never changes: whoever reads one reads a whole one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from smidgen.data.images import Facts
from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, parse_json, sha256_of, size_of
from smidgen.files.writing import PARTIAL, whole_file

# Part of every spec, and so of the folder's name: raise it with any change to the files.
FORMAT_VERSION = 1

CACHE_REMEDY = "make room or give another folder (environment variable SMIDGEN_CACHE)"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a shard: SHA-256 of its file, facts, mean and std (V, C, h, w)."""

    content: str
    facts: Facts
    mean: torch.Tensor
    std: torch.Tensor


class _Header(msgspec.Struct):
    """What a shard says of itself; `rows` are content, format, width and height of each image."""

    spec: dict[str, Any]
    rows: list[tuple[str, str, int, int]]


class Shard:
    """An opened shard; its tensors are memory-mapped and cost memory only where they are read."""

    def __init__(self, path: Path, spec: dict[str, Any]) -> None:
        """Reads the header. Raises: ValueError if it is damaged, or not made for `spec`."""
        self.path = path
        self._lock = threading.Lock()
        self._intact: bool | None = None
        try:
            with safe_open(path, framework="pt") as file:
                header = parse_json((file.metadata() or {}).get("smidgen", ""), _Header)
                self.mean: torch.Tensor = file.get_tensor("mean")
                self.std: torch.Tensor = file.get_tensor("std")
        except Unreadable as error:
            raise ValueError(f"its header: {error.reason}") from error
        # a type of numbers that this torch has not is an AttributeError or a RuntimeError
        except (OSError, SafetensorError, AttributeError, RuntimeError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        self.contents = [content for content, *_ in header.rows]
        self.facts = [Facts(format=f, width=w, height=h) for _, f, w, h in header.rows]
        if header.spec != spec:
            raise ValueError("made for another transform or codec")
        for tensor in (self.mean, self.std):
            _check_rows(tensor, len(header.rows), spec)
        if self.mean.shape != self.std.shape:
            raise ValueError("means and deviations do not fit")

    def intact(self) -> bool:
        """Whether the bytes are those that were written; reads the whole file on the first call."""
        with self._lock:
            if self._intact is None:
                try:
                    self._intact = self.path.stem == sha256_of(self.path)
                except OSError:
                    self._intact = False
            return self._intact


def dtype_of(spec: dict[str, Any]) -> torch.dtype:
    """In what the latents of a specification are kept; one that says nothing means float32."""
    return torch.float16 if spec.get("precision") == "fp16" else torch.float32


def _check_rows(tensor: torch.Tensor, num_rows: int, spec: dict[str, Any]) -> None:
    """Raises ValueError unless it has a latent (V, C, h, w) for each row."""
    if tensor.dtype != dtype_of(spec) or tensor.ndim != 5 or 0 in tensor.shape:
        raise ValueError(f"{tensor.dtype} latents of shape {tuple(tensor.shape)}")
    if len(tensor) != num_rows or tensor.shape[1] != 1 + spec["flip"]:
        raise ValueError("rows and tensors do not fit")


def open_shards(directory: Path, spec: dict[str, Any]) -> list[Shard]:
    """Every readable shard of a folder, in the order of names; damaged ones are removed.

    Raises: SmidgenError if the folder exists and cannot be read.
    """
    shards: list[Shard] = []
    try:
        paths = sorted(p for p in directory.iterdir() if p.suffix == ".safetensors")
    except FileNotFoundError:
        return shards
    except OSError as error:
        raise cache_error(directory, error, "read") from error
    for path in paths:
        try:
            size_of(path)  # a pipe would block whoever opens it
            path.open("rb").close()
        except (OSError, Unreadable) as error:
            # Another run has just removed it, or another user owns it: neither is damage.
            _log.warning("cannot read the cache file %s: %s", path, error)
            continue
        try:
            shards.append(Shard(path, spec))
        except ValueError as error:
            discard(path, str(error))
    return shards


def discard(path: Path, reason: str) -> None:
    """Logs that a cache file is damaged and removes it, if the folder allows that."""
    _log.warning("cache file %s is damaged (%s): its images are encoded again", path, reason)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot remove %s: %s", path, error.strerror)


def write_shard(directory: Path, spec: dict[str, Any], rows: Sequence[Row]) -> Shard:
    """Writes the rows as a new shard and opens it. Two writers of equal rows write equal files.

    Raises: SmidgenError if the folder cannot be made or written, or the disk is full.
    """
    facts = [[r.content, r.facts.format, r.facts.width, r.facts.height] for r in rows]
    header = {"spec": spec, "rows": facts}
    tensors = {
        "mean": torch.stack([row.mean for row in rows]),
        "std": torch.stack([row.std for row in rows]),
    }
    data = save(tensors, metadata={"smidgen": json.dumps(header)})
    path = directory / f"{hashlib.sha256(data).hexdigest()}.safetensors"
    with whole_file(path, CACHE_REMEDY) as partial:
        partial.write_bytes(data)
    try:
        return Shard(path, spec)
    except ValueError as error:
        raise SmidgenError(f"cannot read back the cache file {path}: {error}") from error


def check_writable(directory: Path) -> None:
    """Makes the folder and a file in it, and removes what killed runs left more than a day ago.

    Raises: SmidgenError if it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"smidgen")
        for left in directory.glob(f".*{PARTIAL}"):
            if time.time() - left.stat().st_mtime > 86_400:
                left.unlink(missing_ok=True)
    except FileNotFoundError as error:
        # Another run may remove the same leftovers at the same moment.
        if not directory.is_dir():
            raise cache_error(directory, error, "write") from error
    except OSError as error:
        raise cache_error(directory, error, "write") from error


def cache_error(directory: Path, error: OSError, verb: str) -> SmidgenError:
    """The one line for a cache folder that cannot be used."""
    return SmidgenError(
        f'cannot {verb} the latent cache "{directory}": {error.strerror or error}; {CACHE_REMEDY}'
    )
