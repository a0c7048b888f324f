"""`push`, `pull`: deltas on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smidgen.core.delta import Delta
from smidgen.files.run_files import DELTA
from smidgen.files.settings import make
from smidgen.hub.config import PullConfig, PushConfig
from smidgen.models.base import Base


def push(
    source: str | Path,
    repo: str,
    *,
    private: bool = False,
    licence: str | None = None,
    base_model: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Put the folder of a run, or a delta's file, on the hub as `repo` (OWNER/NAME), with a model
    card (docs/hub.md); what was put there, as `smidgen push --json` has it. Everything is checked
    before anything is sent. The token is that of the hub's own client (HF_TOKEN, `hf auth login`).

    Raises: UsageError for a setting that makes no sense or a source without a delta; SmidgenError
        if a file is damaged, there is no token, it may not write there, the repository holds other
        than a delta and `force` is not given, or the hub cannot be reached.
    """
    from smidgen.hub.push import push as send

    given = {"source": Path(source), "repo": repo, "private": private, "licence": licence}
    return send(make(PushConfig, given | {"base_model": base_model}), force=force)


def pull(
    repo: str,
    *,
    output: str | Path,
    revision: str | None = None,
    base: Base | None = None,
    force: bool = False,
) -> Delta:
    """The delta of a repository on the hub, which then lies in the folder `output` with its card,
    result and pictures. Only these files are fetched, each within its limit. With `base` a delta of
    another one is refused.

    Raises: UsageError for a setting that makes no sense, or an `output` that holds something else;
        SmidgenError if there is no such repository or revision, no delta in it, a file is damaged,
        the delta is another base's, or the hub cannot be reached.
    """
    from smidgen.hub.pull import pull as fetch

    given = {"repo": repo, "output": Path(output), "revision": revision}
    config = make(PullConfig, given)
    fetch(config, None if base is None else lambda delta: base, force=force)
    return Delta.load(config.output / DELTA)
