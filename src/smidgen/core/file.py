"""The delta file: safetensors whose metadata holds one JSON header (docs/file-formats.md).

What the header and the tensors mean is in delta.py.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.files.writing import whole_file

FORMAT_VERSION = 1
HEADER = "smidgen"  # the only key of the metadata, so that equal deltas are equal bytes


def write_file(path: Path | str, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write a delta file as a whole or not at all: whatever fails, an older file at `path` stays.

    Raises: SmidgenError if the file cannot be written there.
    """
    text = json.dumps({"format_version": FORMAT_VERSION} | dict(header), sort_keys=True)
    content = save(dict(tensors), metadata={HEADER: text})
    with whole_file(path) as partial:
        partial.write_bytes(content)


def read_header(path: Path | str) -> dict[str, Any]:
    """The JSON header of a delta file; no tensor is read.

    Raises: SmidgenError if there is no such file or it is damaged, not a delta, or too new.
    """
    with _opened(path) as (header, _):
        return header


def is_delta(path: Path | str) -> bool:
    """Whether a file says that it is a delta."""
    try:
        read_header(path)
    except SmidgenError:
        return False
    return True


def read_file(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a delta file, on the CPU.

    Raises: SmidgenError as `read_header`.
    """
    with _opened(path) as (header, file):
        # clones: the file's own memory is mapped, and aligned otherwise than PyTorch's, on which
        # the last bit of a matrix product may depend
        return header, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def damaged(path: Path | str, why: object) -> SmidgenError:
    """The error of a file that is not what its name promises."""
    return SmidgenError(f"{path} is truncated or damaged ({why}); copy it again or train anew")


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[dict[str, Any], Any]]:
    if Path(path).is_dir():
        raise SmidgenError(f"{path} is a folder; give the delta.safetensors in it")
    try:
        with safe_open(path, framework="pt") as file:
            yield _parse(path, (file.metadata() or {}).get(HEADER)), file
    except SafetensorError as error:
        raise damaged(path, error) from error
    except OSError as error:
        reason = error.strerror or error
        raise SmidgenError(f"cannot read {path}: {reason}; give a delta file") from error


def _parse(path: Path | str, text: str | None) -> dict[str, Any]:
    if text is None:
        raise SmidgenError(
            f"{path} is safetensors but no smidgen delta (a LoRA of another program? a model?); "
            "give a delta.safetensors that smidgen wrote"
        )
    try:
        header = json.loads(text)
        version = header["format_version"]
        newer = version > FORMAT_VERSION
    except (ValueError, TypeError, KeyError) as error:
        raise damaged(path, "its header is not one of smidgen's") from error
    if newer:
        raise SmidgenError(
            f"{path} is in format {version}, newer than this smidgen's {FORMAT_VERSION}; "
            "upgrade smidgen"
        )
    return header
