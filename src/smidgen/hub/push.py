"""A run or a delta put on the hub. Everything is checked before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smidgen.errors import SmidgenError
from smidgen.files.run_files import DELTA
from smidgen.hub import client
from smidgen.hub.card import make_card
from smidgen.hub.config import CARD, LIMITS, PushConfig
from smidgen.hub.contents import Contents, read_contents

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from huggingface_hub.hf_api import ModelInfo

FROM_THE_HUB = ".gitattributes"  # what the hub itself puts into a new repository


@dataclass(frozen=True, kw_only=True, eq=False)
class Parcel:
    """What is ready to be sent: the files by their names on the hub, and the card among them."""

    contents: Contents
    card: ModelCard
    files: dict[str, Path | bytes]

    def facts(self) -> dict[str, Any]:
        """The files with their bytes, and the warnings, as JSON."""
        sizes = {
            name: len(one) if isinstance(one, bytes) else one.stat().st_size
            for name, one in self.files.items()
        }
        return {"files": sizes, "warnings": list(self.contents.warnings)}


def pack(config: PushConfig) -> Parcel:
    """What `config` would push. The hub is not asked.

    Raises: UsageError, SmidgenError as `read_contents`.
    """
    contents = read_contents(config.source)
    card = make_card(contents, config)
    files = {CARD: str(card).encode(), **contents.files}
    return Parcel(contents=contents, card=card, files=files)


def push(config: PushConfig, *, force: bool = False) -> dict[str, Any]:
    """Put what `config` means on the hub, in one commit, which also takes away what an earlier
    delta left there. With `force` into a repository that holds anything else too, whose other files
    then stay.

    Raises: UsageError, SmidgenError as `pack`; SmidgenError if there is no token, it may not write
        there, the repository holds other than a delta, or is public where a private one is asked
        for, the hub refuses the card, or it cannot be reached.
    """
    parcel = pack(config)
    client.token()
    before = client.model(config.repo)
    gone = [] if before is None else _standing(before, config, force=force)
    client.check_card(parcel.card)
    if before is None:
        client.create(config.repo, private=config.private)
    parent = None if before is None else before.sha
    gone = [name for name in gone if name not in parcel.files]
    revision, url = client.commit(config.repo, parcel.files, gone, parent)
    return {
        "repo": config.repo,
        "url": url.partition("/commit/")[0],
        "revision": revision,
        "unchanged": revision == parent,
        "private": config.private if before is None else bool(before.private),
        **parcel.facts(),
    }


def _standing(before: ModelInfo, config: PushConfig, *, force: bool) -> list[str]:
    """The files of a repository that a delta of ours has left there, which may go.

    Raises: SmidgenError if the repository may not be written to as it stands.
    """
    if config.private and before.private is False:
        raise SmidgenError(
            f'"{config.repo}" is public; make it private on its page of settings, or give another'
        )
    names = {file.rfilename for file in before.siblings or ()} - {FROM_THE_HUB}
    if not names:
        return []
    if DELTA in names and client.holds_delta(config.repo, before.sha):
        return sorted(names & set(LIMITS))
    if not force:
        listed = ", ".join(sorted(names)[:3])
        raise SmidgenError(
            f'"{config.repo}" holds other than a delta of smidgen ({listed}); give another '
            "repository, or write into it with force (--force)"
        )
    return []
