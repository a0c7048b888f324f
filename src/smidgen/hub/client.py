"""What is asked of the hub, each answer within a time, each refusal with its name.

Address and token come from the usual places of the hub's client: HF_ENDPOINT, HF_TOKEN, `hf auth
login`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from smidgen.core.file import HEADER
from smidgen.errors import SmidgenError
from smidgen.files.reading import in_one_line
from smidgen.files.run_files import DELTA
from smidgen.hub.config import TAG, ListConfig
from smidgen.models.hub import ANSWER_SECONDS, DEADLINE_SECONDS, in_time

if TYPE_CHECKING:
    from huggingface_hub import ModelCard
    from huggingface_hub.hf_api import ModelInfo

T = TypeVar("T")

MESSAGE = "Push a delta with smidgen"
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def model(repo: str, revision: str | None = None) -> ModelInfo | None:
    """What the hub says of a repository and, with their sizes, its files; None if there is none.

    Raises: SmidgenError if it cannot be asked, the repository is gated, or has no such revision.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def ask() -> ModelInfo | None:
        try:
            return HfApi().model_info(
                repo, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS
            )
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None

    return answered(ask, repo, seconds=DEADLINE_SECONDS)


def token() -> str:
    """The token of whoever pushes. Raises: SmidgenError if there is none."""
    from huggingface_hub import get_token

    found = get_token()
    if found is None:
        raise SmidgenError(
            "the hub takes files only from those it knows: make a token with write access on its "
            "page of settings, then `hf auth login`, or set HF_TOKEN"
        )
    return found


def holds_delta(repo: str, revision: str | None) -> bool:
    """Whether the DELTA of a repository says that it is one; its header alone is read."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import SafetensorsParsingError

    def ask() -> bool:
        try:
            found = HfApi().parse_safetensors_file_metadata(
                repo, DELTA, revision=revision, timeout=ANSWER_SECONDS
            )
        except SafetensorsParsingError:
            return False
        return HEADER in found.metadata

    return answered(ask, repo, seconds=DEADLINE_SECONDS)


def check_card(card: ModelCard) -> None:
    """Raises: SmidgenError if the hub would not take the card, with its reason."""

    def ask() -> None:
        try:
            card.validate()
        except ValueError as error:
            raise SmidgenError(f"the hub refuses the card: {in_one_line(error)}") from error

    answered(ask, "the card", seconds=DEADLINE_SECONDS)


def create(repo: str, *, private: bool) -> None:
    """Make a repository. Raises: SmidgenError if the token may not, or there is one by now."""
    from huggingface_hub import HfApi

    make = HfApi(token=token()).create_repo
    answered(lambda: make(repo, private=private), repo, seconds=DEADLINE_SECONDS)


def commit(
    repo: str, files: dict[str, Path | bytes], gone: list[str], parent: str | None
) -> tuple[str, str]:
    """One commit that puts `files` there and takes those `gone` away; its id and its address.
    Nothing is committed if the newest commit is not `parent` (None: of a repository just made).
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    operations = [
        *(CommitOperationAdd(name, content) for name, content in files.items()),
        *(CommitOperationDelete(name) for name in gone),
    ]
    done = answered(
        lambda: HfApi(token=token()).create_commit(
            repo, operations, commit_message=MESSAGE, parent_commit=parent
        ),
        repo,
    )
    return done.oid, done.commit_url


def fetch(repo: str, name: str, revision: str, folder: Path) -> Path:
    """One file of a repository, in `folder`."""
    from huggingface_hub import hf_hub_download

    return Path(
        answered(
            lambda: hf_hub_download(
                repo, name, revision=revision, local_dir=folder, etag_timeout=ANSWER_SECONDS
            ),
            repo,
        )
    )


def models(config: ListConfig, most: int) -> list[ModelInfo]:
    """The first `most` repositories with our tag, those changed last first."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import get_session

    def ask() -> list[ModelInfo]:
        api = HfApi()
        get_session().head(api.endpoint, timeout=ANSWER_SECONDS)  # the next tries for half a minute
        found = api.list_models(
            filter=TAG,
            author=config.owner,
            sort="last_modified",
            limit=most,
            full=True,
            cardData=True,
        )
        return list(found)

    return answered(ask, config.owner or "everybody", seconds=DEADLINE_SECONDS)


def answered(work: Callable[[], T], repo: str, *, seconds: float | None = None) -> T:
    """What `work` gives, within `seconds` if there is such a limit.

    Raises: SmidgenError for whatever the hub or the way to it refuses.
    """
    try:
        return work() if seconds is None else in_time(work, seconds)
    except SmidgenError:
        raise
    except TimeoutError as error:
        raise SmidgenError(
            f"the hub did not answer within {seconds or ANSWER_SECONDS:g} seconds; try again"
        ) from error
    except (KeyError, TypeError, AttributeError):  # a mistake of this program
        raise
    except Exception as error:  # those of the http library too, which is not ours to name
        raise _refusal(error, repo) from error


def unknown(repo: str) -> SmidgenError:
    """That there is no such repository, or a private one."""
    return SmidgenError(f'the hub has no model "{repo}" that you may read; `smidgen ls` lists some')


def _refusal(error: Exception, repo: str) -> SmidgenError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = getattr(getattr(error, "response", None), "status_code", None)
    said = in_one_line(error)
    if isinstance(error, GatedRepoError):
        return SmidgenError(f'"{repo}" is gated: ask on its page to be let in, then set HF_TOKEN')
    if isinstance(error, RepositoryNotFoundError):
        return unknown(repo)
    if isinstance(error, RevisionNotFoundError):
        return SmidgenError(f'"{repo}" has no such revision; give a branch, tag or commit of it')
    if status == 401:
        return SmidgenError(
            f'the hub does not know the token that "{repo}" was asked with ({said}); to push give '
            "one that may write, to read what is public unset HF_TOKEN"
        )
    if status == 403:
        return SmidgenError(
            f'the hub refuses this for "{repo}" ({said}); give a token that may read it, or to '
            "push one that may write"
        )
    if status == 404:
        return SmidgenError(f'"{repo}" lacks what was asked for ({said}); look at its page')
    if status in (409, 412):
        return SmidgenError(f'"{repo}" changed in the meantime ({said}); run this again')
    if status is not None:
        return SmidgenError(f'the hub answers {status} for "{repo}" ({said}); try again later')
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return SmidgenError(
            f"cannot write what the hub sends ({said}); make room or choose a place"
        )
    return SmidgenError(f"the hub cannot be reached ({said}); try again when the network is there")
