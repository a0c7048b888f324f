"""Where deltas lie in a folder, and what lies beside them: NAME.safetensors with
NAME.result.json, or NAME/delta.safetensors, as a training leaves it, with result.json.

Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from smidgen.errors import SmidgenError, UsageError
from smidgen.files.run_files import DELTA

SUFFIX = ".safetensors"
GATE, COPIES = "gate.json", "copies.png"


def deltas_in(folder: Path) -> list[tuple[str, Path]]:
    """Names and paths of what may be deltas. Raises: SmidgenError if it cannot be read."""
    try:
        listed = sorted(folder.iterdir())
    except OSError as error:
        raise SmidgenError(f"cannot read the folder {folder}: {error.strerror}") from error
    runs = [(path.name, path / DELTA) for path in listed]
    plain = [(path.stem, path) for path in listed if path.suffix == SUFFIX]
    return [(name, path) for name, path in (*plain, *runs) if path.is_file()]


def named(sources: Iterable[Path]) -> list[tuple[str, Path]]:
    """The deltas that `sources` mean: files of deltas, runs, and folders of either, each once; of
    several of one name the paths are their names.

    Raises: UsageError for a source where there is none.
    """
    found: dict[Path, str] = {}
    for source in sources:
        if source.is_file():
            name = source.resolve().parent.name if source.name == DELTA else source.stem
            here = [(name, source)]
        elif (source / DELTA).is_file():
            here = [(source.resolve().name, source / DELTA)]
        elif source.is_dir():
            here = deltas_in(source)
        else:
            raise UsageError(f"no such file or folder: {source}")
        if not here:
            raise UsageError(f"no delta in {source}; give a run, a delta's file or their folder")
        found |= {path: name for name, path in here}
    several = {name for name, count in Counter(found.values()).items() if count > 1}
    return [(str(path) if name in several else name, path) for path, name in found.items()]


def beside(delta: Path, name: str) -> Path:
    """Where a file of this name about a delta lies: in its run, or <stem>.<name> beside it."""
    return delta.parent / (name if delta.name == DELTA else f"{delta.stem}.{name}")
