"""Published weights: where they are looked for, fetched once, and checked before they are used.

One file with a known hash (`read_published`), or the folder of a model (`model_folder`). Nothing
here knows a network.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from smidgen.errors import SmidgenError
from smidgen.files.places import default_cache_dir
from smidgen.files.reading import in_one_line, read_bytes
from smidgen.files.writing import whole_file
from smidgen.models.hub import download, in_time

WEIGHTS_VARIABLE = "SMIDGEN_WEIGHTS"
ANSWER_SECONDS = 10.0  # for the connection, name resolution too, and for each read
MAX_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file that its authors published, by name, address and the SHA-256 of its bytes."""

    name: str
    url: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model on the hub: its id, the revision that has safetensors, and the files needed."""

    repo_id: str
    patterns: tuple[str, ...]
    revision: str = "main"

    @property
    def name(self) -> str:
        """The folder that holds it on this machine, the id without its owner."""
        return self.repo_id.partition("/")[2]


def read_published(
    file: PublishedFile,
    *,
    given: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> bytes:
    """The bytes of a published file with the right hash, from this machine or fetched once.

    Looked for as `given` (the file or its folder), in the folder $SMIDGEN_WEIGHTS, in the folder
    `weights` of the cache, and where other programs keep it; else fetched into the cache.

    Raises: SmidgenError if the file has other bytes, or is nowhere and cannot be fetched.
    """
    if given is not None:
        path = given / file.name if given.is_dir() else given
        if not path.is_file():
            raise SmidgenError(f"no such file: {path}; expected {file.name} from {file.url}")
        return _read_checked(path, file)
    for folder in _own_folders(environment):
        if (folder / file.name).is_file():
            return _read_checked(folder / file.name, file)
    for path in _places_of_others(file, environment):
        # Theirs may be half a download: then it is passed over, and no harm is done.
        if path.is_file() and _sha256(content := read_bytes(path, MAX_BYTES)) == file.sha256:
            return content
    return _fetch(file, default_cache_dir(environment) / "weights" / file.name)


def model_folder(
    model: PublishedModel,
    *,
    given: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """The folder of a model's files, on this machine or downloaded from the hub.

    Looked for as `given` or the folder of the model's name in it, then as that folder in
    $SMIDGEN_WEIGHTS and in `weights` of the cache, then at the hub or in its client's own cache.

    Raises: SmidgenError if there is no model, or it cannot be downloaded.
    """
    if given is not None:
        for folder in (given, given / model.name):
            if (folder / "config.json").is_file():
                return folder
        raise SmidgenError(
            f"no model in {given}: expected config.json and safetensors of {model.repo_id} there "
            f'or in its folder "{model.name}"'
        )
    for folder in _own_folders(environment):
        if (folder / model.name / "config.json").is_file():
            return folder / model.name
    try:
        return download(model.repo_id, patterns=model.patterns, revision=model.revision)
    except SmidgenError as error:
        place = default_cache_dir(environment) / "weights" / model.name
        raise SmidgenError(
            f"{error}. Or put {', '.join(model.patterns)} from https://huggingface.co/"
            f"{model.repo_id}/tree/{model.revision} into {place}"
        ) from error


def _own_folders(environment: Mapping[str, str]) -> list[Path]:
    named = environment.get(WEIGHTS_VARIABLE)
    folders = [Path(named)] if named else []
    return [*folders, default_cache_dir(environment) / "weights"]


def _places_of_others(file: PublishedFile, environment: Mapping[str, str]) -> Sequence[Path]:
    """Where torch.hub, clean-fid, k-diffusion and NVIDIA's dnnlib keep what they download."""
    home = Path(environment.get("HOME") or tempfile.gettempdir())
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    address = hashlib.md5(file.url.encode(), usedforsecurity=False).hexdigest()
    return (
        Path(torch.hub.get_dir()) / "checkpoints" / file.name,
        Path(tempfile.gettempdir()) / file.name,
        cache / "k-diffusion" / file.name,
        home / ".cache" / "dnnlib" / "downloads" / f"{address}_{file.name}",
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_checked(path: Path, file: PublishedFile) -> bytes:
    """The bytes of the file, hashed and returned from one reading, so that no other are used."""
    content = read_bytes(path, MAX_BYTES)
    if (found := _sha256(content)) != file.sha256:
        raise SmidgenError(
            f"{path} is truncated or another file: its SHA-256 is {found}, expected {file.sha256}; "
            f"get it again from {file.url}"
        )
    return content


def _fetch(file: PublishedFile, target: Path) -> bytes:
    """Download, check, and only then keep at `target`, whole or not at all."""
    try:
        ask = functools.partial(urllib.request.urlopen, file.url, timeout=ANSWER_SECONDS)
        with in_time(ask, ANSWER_SECONDS) as response:
            content = response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise SmidgenError(
            f"{file.name} is not on this machine and could not be fetched ({in_one_line(error)}). "
            f"Get it from {file.url} (SHA-256 {file.sha256}) and put it at {target}"
        ) from error
    if (found := _sha256(content)) != file.sha256:
        raise SmidgenError(
            f"what came from {file.url} has SHA-256 {found}, expected {file.sha256}: try again, or "
            f"put the right file at {target}"
        )
    with whole_file(target) as partial:
        partial.write_bytes(content)
    return content
