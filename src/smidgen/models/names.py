"""What the name of a base means, before anything is loaded. Imports no torch: the command line
asks here first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

# of frozen weights, kept and not computed in
BasePrecision = Literal["fp32", "bf16", "fp16", "int8", "nf4"]

FACTOR = 8  # by which the codec of all architectures that have a name reduces images
EMBEDDED = Path(__file__).parent / "embedded"
ARCHITECTURES = Path(__file__).parent / "architectures"
BASE_FILES = ("dit.safetensors", "model_index.json")  # a folder with one of these is a base
FILE_SUFFIXES = (".pt", ".pth", ".safetensors", ".bin", ".ckpt")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def shipped_names() -> tuple[str, ...]:
    """The bases that come with the package."""
    found = (path for name in BASE_FILES for path in EMBEDDED.glob(f"*/{name}"))
    return tuple(sorted(path.parent.name for path in found))


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name."""
    return HUB_ID.fullmatch(name) is not None


def is_architecture(name: str | Path) -> bool:
    """Whether this may be the name of an architecture, which has no weights; no file or folder."""
    if not isinstance(name, str) or Path(name).exists():
        return False
    is_dit = name.startswith("DiT-") and Path(name).suffix not in FILE_SUFFIXES
    return is_dit or (ARCHITECTURES / f"{name}.json").is_file()


def on_hub(name: str | Path) -> bool:
    """Whether this is a hub id and nothing that is here: no architecture, folder or file."""
    if not isinstance(name, str) or is_architecture(name):
        return False
    path = Path(name).expanduser()
    return is_hub_id(name) and path.suffix not in FILE_SUFFIXES and not path.exists()
