"""Conditions of many prompts on the disk, mapped into memory: what text encoders made of a text is
found by its SHA-256 in the folder of the encoders. Each prompt keeps its own number of tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save

from smidgen.core.weights import read_safetensors
from smidgen.errors import SmidgenError
from smidgen.files.reading import Unreadable, parse_json, sha256_of
from smidgen.files.writing import whole_file
from smidgen.hosts.family import Condition

SUFFIX = ".safetensors"
HEADER = "smidgen"
REMEDY = "make room, or give another --cache-dir"

logger = logging.getLogger(__name__)


class ConditionStore:
    """The conditions in one folder, that of a text a mapping of tensors with one row each."""

    def __init__(self, folder: Path) -> None:
        """Opens what is there; damaged files are removed, and what they held is missing."""
        self._folder = folder
        self._known: dict[str, Condition] = {}
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            try:
                self._enter(path)
            except (SmidgenError, Unreadable, ValueError) as error:
                logger.warning("%s is damaged (%s): its texts are encoded again", path, error)
                path.unlink(missing_ok=True)

    def __contains__(self, text: str) -> bool:
        return key_of(text) in self._known

    def __getitem__(self, text: str) -> Condition:
        return self._known[key_of(text)]

    def add(self, conditions: Mapping[str, Condition]) -> None:
        """Write the conditions of texts as a file of their own, and map it.

        Raises: SmidgenError if the disk refuses.
        """
        tensors = {
            f"{row}.{name}": value.contiguous()
            for row, condition in enumerate(conditions.values())
            for name, value in condition.items()
        }
        keys = [key_of(text) for text in conditions]
        data = save(tensors, metadata={HEADER: json.dumps(keys)})
        path = self._folder / f"{hashlib.sha256(data).hexdigest()}{SUFFIX}"
        with whole_file(path, REMEDY) as partial:
            partial.write_bytes(data)
        self._enter(path)

    def _enter(self, path: Path) -> None:
        """Raises: SmidgenError, Unreadable, ValueError if the file is not what was written."""
        if sha256_of(path) != path.stem:
            raise ValueError("its checksum differs")
        tensors, metadata = read_safetensors(path)
        found: list[dict] = [{} for _ in parse_json(metadata.get(HEADER, ""), list[str])]
        for name, value in tensors.items():
            row, _, part = name.partition(".")
            found[int(row)][part] = value
        keys: Sequence[str] = parse_json(metadata[HEADER], list[str])
        self._known |= dict(zip(keys, found, strict=True))


def key_of(text: str) -> str:
    """By what a text is found."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
