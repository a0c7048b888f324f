"""The Hugging Face hub: a model's files on this machine, or an error within ten seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

from smidgen.errors import SmidgenError
from smidgen.files.reading import in_one_line
from smidgen.models.files import read_json, second_copies
from smidgen.models.pipelines import INDEX, is_pipeline, wanted
from smidgen.models.schemas import Folder

T = TypeVar("T")

PATTERNS = [  # of a pipeline, of our folder, and of a lone codec; never a pickle
    *(f"{folder}*.json" for folder in ("", "transformer/", "vae/", "scheduler/")),
    *(f"{folder}diffusion_pytorch_model*.safetensors" for folder in ("", "transformer/", "vae/")),
    "dit.safetensors",
]
VARIANTS = ("*.fp16.*", "*.bf16.*", "*.non_ema.*")  # may be second copies; those here are kept
ANSWER_SECONDS = 4.0  # for the connection and for each read
DEADLINE_SECONDS = 6.0  # for everything, name resolution too; the rest of ten is for imports


def download(
    repo_id: str, *, patterns: Sequence[str] | None = None, revision: str | None = None
) -> Path:
    """The folder of a hub model's safetensors and JSON files; an earlier copy if it is unreachable.

    `patterns` names the files wanted (None: those of a base, of a pipeline as its index says, which
    is read before anything large comes), `revision` a branch, tag or commit (None: the main one).

    Raises: SmidgenError if the hub does not answer and there is no copy, there is no such public
        model, the download breaks, or it is a pipeline that cannot be trained.
    """
    known = _known_files(repo_id, revision)
    if patterns is None:
        index = _snapshot(repo_id, [INDEX, "config.json"], revision, known) / INDEX
        described = read_json(index, Folder) if index.is_file() else {}
        patterns = wanted(described, Path(repo_id)) if is_pipeline(described) else PATTERNS
    return _snapshot(repo_id, patterns, revision, known)


def _snapshot(
    repo_id: str, patterns: Sequence[str], revision: str | None, known: Sequence[str] | str
) -> Path:
    """The folder with these files of all that are `known`, or why the hub cannot be asked."""
    # imported late: half a second that a local base does not need
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    problem = known if isinstance(known, str) else None
    try:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(VARIANTS if problem else second_copies(known)),
                etag_timeout=ANSWER_SECONDS,
                local_files_only=problem is not None,
            )
        )
    except LocalEntryNotFoundError as error:
        raise SmidgenError(
            f'"{repo_id}" is no folder here, and as a hub id: {problem or in_one_line(error)}. '
            "Give a folder that you downloaded before"
        ) from error
    except Exception as error:  # the hub's client lets those of its http library through
        raise SmidgenError(
            f'"{repo_id}" could not be downloaded from the hub ({in_one_line(error)}); '
            "try again, or give a folder that you downloaded before"
        ) from error


def _known_files(repo_id: str, revision: str | None) -> list[str] | str:
    """Asks the hub once which files the model has; or why it cannot be asked."""
    try:
        return in_time(lambda: _ask(repo_id, revision), DEADLINE_SECONDS)
    except TimeoutError:
        return f"the hub did not answer within {DEADLINE_SECONDS:.0f} seconds"


def in_time(work: Callable[[], T], seconds: float) -> T:
    """What `work` gives or raises, in a thread: neither the resolution of names nor a trickle of
    bytes obeys the timeouts of a client. Raises: TimeoutError.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except Exception as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:g} seconds") from error


def _ask(repo_id: str, revision: str | None) -> list[str] | str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = HfApi().model_info(repo_id, revision=revision, timeout=ANSWER_SECONDS)
    except RepositoryNotFoundError:  # gated models as well
        return "the hub has no such model that you may read"
    except Exception as error:  # those of the http library, which is not ours to name
        return f"the hub cannot be reached ({in_one_line(error)})"
    return [file.rfilename for file in found.siblings or ()]
