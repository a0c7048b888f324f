"""The delta file: safetensors whose metadata holds one JSON header (docs/file-formats.md).

What the header and the tensors mean is in delta.py.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from safetensors.torch import save
from torch import Tensor

from smidgen.core.weights import damaged, open_safetensors
from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, fit, parse_json
from smidgen.files.writing import whole_file

FORMAT_VERSION = 1
HEADER = "smidgen"  # the only key of the metadata, so that equal deltas are equal bytes
MOST_BYTES = 2**24  # of a header: 10,000 edits and a million names of classes


class Prompts(Struct):
    """What is read of `training.prompts`: what a delta of a base with prompts was trained on."""

    classes: list[str] = []
    template: str | None = None


class Subject(Struct):
    """What is read of `training.dreambooth`: the subject that a delta was trained on."""

    token: str | None = None
    class_name: str | None = None
    instance_prompt: str | None = None
    class_prompt: str | None = None


class Training(Struct):
    """What is read of `training`, which is free otherwise."""

    prompts: Prompts = field(default_factory=Prompts)
    dreambooth: Subject = field(default_factory=Subject)


class Edits(Struct):
    """The rest of a header; the schema of each of the edits goes by its kind (`Edit.schema`)."""

    edits: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a delta comes from: all plain JSON, as a header has it.

    `base` is a name for people, `fingerprint` tells whether other weights are the same base.
    `classes` names the rows of the label table, but for the null row, or, without a table, those of
    the base's that images were of. `training` is free: data, steps, seed, learning rate, versions,
    date. `components` has the fingerprints of the other components of the base in which edits act,
    such as its text encoders.
    """

    method: str
    config: dict[str, Any]
    host: str
    base: str
    fingerprint: str
    classes: tuple[str, ...]
    training: dict[str, Any]
    components: dict[str, str] = dataclasses.field(default_factory=dict)


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
    """Whether a file says that it is a delta, damaged or not."""
    try:
        with open_safetensors(path) as file:
            return HEADER in (file.metadata() or {})
    except SmidgenError:
        return False


def read_file(path: Path | str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a delta file, on the CPU.

    Raises: SmidgenError as `read_header`.
    """
    with _opened(path) as (header, file):
        # clones: the file's own memory is mapped, and aligned otherwise than PyTorch's, on which
        # the last bit of a matrix product may depend
        return header, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path | str) -> Iterator[tuple[dict[str, Any], Any]]:
    if Path(path).is_dir():
        raise SmidgenError(f"{path} is a folder; give the delta.safetensors in it")
    with open_safetensors(path) as file:
        yield _parse(path, (file.metadata() or {}).get(HEADER)), file


def _parse(path: Path | str, text: str | None) -> dict[str, Any]:
    if text is None:
        raise SmidgenError(
            f"{path} is safetensors but no smidgen delta (a LoRA of another program? a model?); "
            "give a delta.safetensors that smidgen wrote"
        )
    if len(text) > MOST_BYTES:
        raise damaged(path, f"its header has {len(text):,} characters")
    try:
        header = parse_json(text, dict[str, Any])
        version = fit(header.get("format_version"), int)
        if version > FORMAT_VERSION:
            raise SmidgenError(
                f"{path} is in format {version}, newer than this smidgen's {FORMAT_VERSION}; "
                "upgrade smidgen"
            )
        fit(fit(header, Provenance).training, Training)
        fit(header, Edits)
    except Unreadable as error:
        raise damaged(path, f"its header: {error.reason}") from error
    return header
