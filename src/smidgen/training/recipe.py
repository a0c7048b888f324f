"""RUN/recipe.toml: the settings of a run, and the rule for running into the same folder again.

The same settings resume or find the run finished; others are refused, or start over with force. The
file reads as a recipe of the command line: a key a line, "none" for None.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smidgen.errors import UsageError
from smidgen.files.toml import NONE, toml
from smidgen.files.writing import write_text
from smidgen.training.state import AGAIN, checkpoints, step_of, writing

RECIPE = "recipe.toml"
FOLDERS = ("checkpoints", "deltas", "samples", "tensorboard")
FILES = ("delta.safetensors", "log.jsonl", "run.json", "bad_files.json", "nonfinite.json")
NOT_COMPARED = ("num_threads", "cache_dir", "device")  # where a run happens, not what it is


def recipe_text(settings: Mapping[str, Any]) -> str:
    """The settings as TOML, a line each; those of a group of settings under dotted names."""
    return "".join(f"{name} = {toml(value)}\n" for name, value in _dotted(settings).items())


def check_recipe(folder: Path, settings: Mapping[str, Any], *, force: bool = False) -> None:
    """Whether a run with these settings may write to `folder`; nothing is changed.

    Raises: UsageError if the folder holds a run with other settings and not `force`, naming them,
        or if nothing can be written there.
    """
    _check_writable(folder)
    before = read_recipe(folder)
    if before is None:
        # without a recipe nothing says that these are ours: not even force may remove them
        ours = [name for name in (*FOLDERS, *FILES) if (folder / name).exists()]
        if ours:
            raise UsageError(f"{folder} holds {ours[0]} but no {RECIPE}; give another output")
        return
    if force:
        return
    before, now = _dotted(before), _dotted(tomllib.loads(recipe_text(settings)))
    changes = [
        f"{name} {_shown(before, name)} -> {_shown(now, name)}"
        for name in {**before, **now}
        if name not in NOT_COMPARED and before.get(name, NONE) != now.get(name, NONE)
    ]
    if changes:
        raise UsageError(
            f"{folder} holds a run with other settings ({', '.join(changes)}); give another "
            "output, or start over there with force"
        )


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """The settings of the run in this folder, None if there is none that can be read."""
    try:
        return tomllib.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_finished(folder: Path, steps: int) -> bool:
    """Whether the run in this folder made its last step and left its delta."""
    found = checkpoints(folder)
    done = bool(found) and step_of(found[-1]) >= steps
    return done and (folder / "delta.safetensors").is_file()


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


def _check_writable(folder: Path) -> None:
    """Try it, and leave everything as it was."""
    absent = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write to {folder}: {error.strerror or error}; give another output"
        ) from error
    finally:
        for part in absent:
            with contextlib.suppress(OSError):
                part.rmdir()


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group, such as one method of several, as `group.name`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in _dotted(value).items()}
        else:
            flat[name] = value
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    return toml(values.get(name, NONE))
