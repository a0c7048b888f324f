"""A server around a tiny base, in this process."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smidgen.core.delta import Delta
from smidgen.models.base import Base
from smidgen.serving.app import create_app
from smidgen.serving.config import ServeConfig
from tests.answering import answering
from tests.tiny.deltas import tiny_delta
from tests.tiny.weights import moved

NAMES = ("greek", "thai", "lora")


def fitting(base: Base, method: str, seed: int = 3, std: float = 0.05) -> Delta:
    """A random delta that says that it was made for this base."""
    delta = moved(tiny_delta(base, method, std=std), std, seed).float()
    delta.provenance = dataclasses.replace(delta.provenance, fingerprint=base.fingerprint)
    return delta


def write_library(folder: Path, base: Base) -> Path:
    """Two deltas of one kind, of which one lies as a training leaves it, and one of another."""
    (folder / "greek").mkdir(parents=True)
    fitting(base, "difffit", 1).save(folder / "greek" / "delta.safetensors")
    fitting(base, "difffit", 2).save(folder / "thai.safetensors")
    fitting(base, "lora").save(folder / "lora.safetensors")
    return folder


@contextlib.contextmanager
def listening(base: Base, folder: Path, key: str | None = None, **settings: Any) -> Iterator[str]:
    """The address of a server that runs until the end."""
    app = create_app(base, ServeConfig(deltas=folder, **settings), key)
    with answering(app) as address:
        yield address
