"""A delta brought from the hub: the files that a delta's repository has and no others, within their
limits, checked before they are put in place, all of them or none.
"""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.run_files import DELTA
from smidgen.files.standing import START_OVER
from smidgen.files.writing import flush, partial_of, writing
from smidgen.hub import client
from smidgen.hub.config import LIMITS, PullConfig
from smidgen.hub.contents import check

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

    from smidgen.models.base import Base


def pull(
    config: PullConfig, base: Callable[[Delta], Base] | None = None, *, force: bool = False
) -> dict[str, Any]:
    """Write the delta of a repository and what lies beside it into a folder. `base` gives the base
    that it must be of (None: it is not compared). What the folder holds already is only replaced
    with `force`, and only if all of it may be such files.

    Raises: UsageError if the folder holds something else; SmidgenError if there is no such
        repository or revision, no delta in it, a file is larger than it may be or damaged, the
        delta is another base's, the hub cannot be reached, or the disk refuses.
    """
    _check_place(config.output)
    found = client.model(config.repo, config.revision)
    if found is None:
        raise client.unknown(config.repo)
    sizes = _wanted(found, config.repo)
    revision = found.sha or config.revision or "main"
    staged = partial_of(config.output.absolute())
    try:
        with writing(config.output):
            staged.mkdir(parents=True)
        for name in sizes:
            client.fetch(config.repo, name, revision, staged)
        shutil.rmtree(staged / ".cache", ignore_errors=True)  # the client's own records
        delta = _checked(staged, sizes, config.repo)
        if base is not None:
            loaded = base(delta)
            delta.check_base(loaded.fingerprint, loaded.name)
        unchanged = _put(staged, config.output, sizes, force=force)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return {
        "repo": config.repo,
        "revision": revision,
        "output": str(config.output),
        "unchanged": unchanged,
        "files": sizes,
        "method": delta.provenance.method,
        "base": delta.provenance.base,
        "trainable": delta.num_parameters(),
    }


def _check_place(output: Path) -> None:
    """Raises: UsageError unless all in this folder may have been pulled."""
    if not output.exists():
        return
    others = sorted(path.name for path in output.iterdir() if path.name not in LIMITS)
    if others:
        raise UsageError(
            f"{output} holds other files ({', '.join(others[:3])}); give another output"
        )


def _wanted(found: ModelInfo, repo: str) -> dict[str, int]:
    """The files to fetch, with their bytes. Raises: SmidgenError."""
    there = {file.rfilename: file.size for file in found.siblings or ()}
    if DELTA not in there:
        weights = [name for name in sorted(there) if Path(name).suffix not in (".md", "")]
        held = f" but {', '.join(weights[:3])}" if weights else ""
        raise SmidgenError(f'"{repo}" holds no {DELTA}{held}; smidgen ls lists deltas')
    sizes = {}
    for name, most in LIMITS.items():
        if name not in there:
            continue
        size = there[name]
        if size is None or size > most:
            said = "an unknown number of" if size is None else f"{size:,}"
            raise SmidgenError(
                f'{name} of "{repo}" has {said} bytes; at most {most:,} are taken: smidgen pushes '
                "none that is larger"
            )
        sizes[name] = size
    return sizes


def _checked(folder: Path, sizes: Mapping[str, int], repo: str) -> Delta:
    """The delta of fetched files. Raises: SmidgenError if one is damaged, as of the repository."""
    try:
        for name in sizes:
            check(name, folder / name)
        return Delta.load(folder / DELTA)
    except SmidgenError as error:
        said = str(error).replace(f"{folder}/", "")
        raise SmidgenError(f'"{repo}" on the hub: {said}') from error


def _put(staged: Path, output: Path, sizes: Mapping[str, int], *, force: bool) -> bool:
    """Have the files in `output`; whether they were there already."""
    held = {path.name for path in output.iterdir()} if output.is_dir() else set()
    same = held == set(sizes) and all(
        filecmp.cmp(staged / name, output / name, shallow=False) for name in held
    )
    if same:
        return True
    if held and not force:
        raise UsageError(f"{output} holds another delta; give another output, or {START_OVER}")
    with writing(output):
        for name in sizes:
            flush(staged / name)
        if not held:
            staged.replace(output)
            return False
        old = partial_of(output.absolute())
        output.replace(old)
        staged.replace(output)
        shutil.rmtree(old)
    return False
