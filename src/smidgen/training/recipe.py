"""RUN/recipe.toml: the settings of a run, and the rule for running into the same folder again.

The same settings resume or find the run finished, and so do others that change no trained bit; more
steps go on where the schedule allows, and more patience. Anything else is refused, or starts over
with force. The file reads as a recipe of the command line: a key a line, "none" for None.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from smidgen.errors import SmidgenError, UsageError
from smidgen.files.names import check_utf8
from smidgen.files.reading import read_toml
from smidgen.files.run_files import DELTA, RECIPE, REPORT
from smidgen.files.standing import Standing, standing
from smidgen.files.toml import NONE, toml
from smidgen.files.writing import try_writing, write_text
from smidgen.methods import resolve
from smidgen.training.best import ran_out
from smidgen.training.state import AGAIN, checkpoints, read_position, writing

FOLDERS = ("checkpoints", "deltas", "samples", "tensorboard")
FILES = (DELTA, "log.jsonl", REPORT, "bad_files.json", "nonfinite.json")
# what changes no trained bit
NOT_COMPARED = (
    # where things lie: the checkpoint knows base, images, captions and start by their content
    *("base", "codec", "data", "class_data", "captions", "init"),
    *("init_other_base", "cache_dir", "device", "reward.weights"),
    "num_threads",
    "buckets",  # the checkpoint knows in which one each image is
    "fast",  # the checkpoint knows which of the two ways was taken
    # what is kept, looked at and told on the way
    *("checkpoint_every", "keep_checkpoints", "keep_deltas", "validate_every"),
    *("sample_every", "metrics_every", "metrics_features", "trackers", "max_bad_share"),
    *("steps", "patience"),  # have rules of their own
)


def recipe_text(settings: Mapping[str, Any]) -> str:
    """The settings as TOML, a line each; those of a group of settings under dotted names."""
    return "".join(f"{name} = {toml(value)}\n" for name, value in _dotted(settings).items())


def check_recipe(
    folder: Path,
    settings: Mapping[str, Any],
    defaults: Mapping[str, Any] = MappingProxyType({}),
    *,
    force: bool = False,
) -> Standing:
    """How a run with these settings stands to what is in `folder`, where a setting that the recipe
    there does not know is its default; nothing is changed.

    Raises: UsageError if the folder holds a run with other settings and not `force`, naming them,
        or if nothing can be written there.
    """
    check_utf8(str(folder.absolute()), "the output")
    try:
        try_writing(folder)
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror or error}; give another output"
        ) from error
    before = read_recipe(folder)
    if before is None:
        # without a recipe nothing says that these are ours: not even force may remove them
        ours = [name for name in (*FOLDERS, *FILES) if (folder / name).exists()]
        if ours:
            raise UsageError(
                f"{folder} holds {ours[0]} but no {RECIPE} that can be read; give another output"
            )
        return "new"
    if force:
        return "new"
    before, now = {**defaults, **_dotted(before)}, _dotted(tomllib.loads(recipe_text(settings)))
    if before.get("lr", NONE) == NONE:  # of an earlier smidgen: the method's own
        before["lr"] = resolve(before.get("method", now["method"])).default_lr
    done = steps_done(folder)
    _check_steps(folder, before, now, done)
    whole = (folder / DELTA).is_file() and (folder / REPORT).is_file()
    patience = now.get("patience", NONE)
    finished = whole and is_at_end(folder, now["steps"], None if patience == NONE else patience)
    return standing(folder, "a run", before, now, finished=finished, not_compared=NOT_COMPARED)


def is_at_end(folder: Path, steps: int, patience: int | None) -> bool:
    """Whether a run took its steps, or its patience is at an end.

    Raises: SmidgenError as `read_position`.
    """
    found = checkpoints(folder)
    if not found:
        return steps <= 0
    position = read_position(found[-1])
    return position.step >= steps or ran_out(position.since_best, patience)


def steps_done(folder: Path) -> int:
    """The step of the newest checkpoint, by its own record; 0 without one.

    Raises: SmidgenError if that is damaged.
    """
    found = checkpoints(folder)
    return read_position(found[-1]).step if found else 0


def _check_steps(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], done: int
) -> None:
    """Raises: UsageError if this number of steps is none to which the run can go on."""
    steps = now["steps"]
    if steps < done:
        raise UsageError(
            f"{folder} is at step {done} already and steps is {steps}; give {done} or more, or "
            "another output"
        )
    if done and before.get("steps") != steps and now.get("lr_schedule") == "cosine":
        raise UsageError(
            f"{folder} cannot go on to other steps ({before.get('steps')} -> {steps}): its rate is "
            "a cosine that ends at the last step, so that the steps that are made would have had "
            f"other rates; begin a new run from it with init ({folder / DELTA})"
        )


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in this folder, None if there is none that can be read."""
    try:
        return read_toml(folder / RECIPE)
    except SmidgenError:
        return None


def begin_run(folder: Path, settings: Mapping[str, Any], *, force: bool = False) -> None:
    """Make the folder and write its recipe; with `force` first remove what an earlier run left, the
    recipe last, so that a kill in between leaves no mixture that would be taken for this run.

    Raises: SmidgenError if the disk refuses.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if force:
            for name in FOLDERS:
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
    write_text(recipe_text(settings), folder / RECIPE, AGAIN)


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group, such as one method of several, as `group.name`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in _dotted(value).items()}
        else:
            flat[name] = value
    return flat
