"""What is pushed, pulled and listed, as settings; and which files a repository of a delta has.

Nothing here imports torch or the hub's client.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from smidgen.errors import UsageError
from smidgen.files.checks import check_integer
from smidgen.files.run_files import DELTA, RECIPE, RESULT
from smidgen.files.settings import SWITCH
from smidgen.models.names import is_hub_id

CARD = "README.md"
PICTURES = ("grid.png", "samples.png")  # the first one there is that of the card
# the only files that are pushed or pulled, with their most bytes; the largest delta is a base
LIMITS: Mapping[str, int] = {
    DELTA: 2**32,
    RESULT: 2**24,
    RECIPE: 2**20,
    CARD: 2**20,
    **dict.fromkeys(PICTURES, 2**26),
}
TAG = "smidgen"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
MOST_LISTED = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class PushConfig:
    """What is pushed where. Raises: UsageError for a name that the hub cannot have."""

    source: Path
    """The folder of a run, or a delta's file."""
    repo: str
    """The repository on the hub, OWNER/NAME; made if there is none."""
    private: bool = dataclasses.field(default=False, metadata=SWITCH)
    """Make the repository a private one; one that is public already is refused then."""
    licence: str | None = None
    """The licence's id on the hub (apache-2.0, cc-by-4.0, ...); none: the card says that there is
    none."""
    base_model: str | None = None
    """The hub id of the base; none: the name in the delta, if it has the form of one."""

    def __post_init__(self) -> None:
        check_repo("repo", self.repo)
        if self.base_model is not None:
            check_repo("base_model", self.base_model)
        if self.licence is not None and not LICENCE.fullmatch(self.licence):
            raise UsageError(
                f'licence is "{self.licence}"; expected an id of the hub, such as apache-2.0, '
                "cc-by-4.0 or other"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PullConfig:
    """What is pulled, and where to. Raises: UsageError for a name that the hub cannot have."""

    repo: str
    """The repository on the hub, OWNER/NAME."""
    output: Path
    """The folder to write."""
    revision: str | None = None
    """A branch, tag or commit; none: the main branch."""

    def __post_init__(self) -> None:
        check_repo("repo", self.repo)
        if self.output.is_file():
            raise UsageError(f"{self.output} is a file; give a folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Which deltas are listed."""

    owner: str | None = None
    """Whose; none: everybody's."""
    base: str | None = None
    """Only those of this base, by its name or hub id."""
    limit: int = 200
    """The most that are listed, those changed last first."""

    def __post_init__(self) -> None:
        check_integer("limit", self.limit, most=MOST_LISTED)
        if self.owner is not None and not is_hub_id(f"{self.owner}/x"):
            raise UsageError(f'owner is "{self.owner}"; expected a name on the hub')


def check_repo(name: str, given: str) -> None:
    """Raises: UsageError unless this has the form OWNER/NAME."""
    if not is_hub_id(given):
        raise UsageError(f'{name} is "{given}"; expected OWNER/NAME')
