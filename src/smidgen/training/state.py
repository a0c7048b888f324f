"""The state of a training and its files: RUN/checkpoints, RUN/deltas and RUN/delta.safetensors.

A checkpoint is a folder with state.safetensors and state.json: delta, average, optimizer, step,
data position and random generators, never the base. It gets its name only when it is complete.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.core.fingerprint import fingerprints_match
from smidgen.core.weights import check_finite
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.writing import flush
from smidgen.files.writing import writing as writing_files
from smidgen.training.randomness import Shuffle, Streams

FORMAT_VERSION = 1
AGAIN = (  # what to do where the disk refused
    "make room and run the same command again: it resumes at the last checkpoint, which is intact"
)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what AdamW keeps for each tensor
STEP_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True)
class Position:
    """The plain numbers of a checkpoint.

    `identity` tells whether base and data are still the same, `best` is the best validation so far
    ({} or step and loss), `seconds` the training time, `scaler` the loss scaling of fp16.
    """

    step: int
    epoch: int
    position: int
    identity: Mapping[str, Any]
    best: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    scaler: Mapping[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a step changes."""

    delta: Delta
    average: Delta
    optimizer: torch.optim.Optimizer
    streams: Streams
    order: Shuffle
    step: int = 0
    best: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def save_checkpoint(
    folder: Path, state: TrainingState, identity: Mapping[str, Any], scaler: Mapping[str, Any]
) -> None:
    """Write checkpoints/step-N of this state below `folder`, complete or not at all.

    Raises: SmidgenError if the disk refuses; older checkpoints are as they were.
    """
    final = folder / "checkpoints" / f"step-{state.step}"
    partial = final.with_name(f"{final.name}.partial")
    position = Position(
        step=state.step,
        epoch=state.order.epoch,
        position=state.order.position,
        identity=identity,
        best=state.best,
        seconds=state.seconds,
        scaler=scaler,
    )
    with writing(final):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            save_file(_tensors(state), partial / "state.safetensors")
            document = {"format_version": FORMAT_VERSION} | asdict(position)
            (partial / "state.json").write_text(json.dumps(document, indent=2) + "\n")
            for path in (*partial.iterdir(), partial):
                flush(path)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            flush(final.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def restore_checkpoint(folder: Path, state: TrainingState, identity: Mapping[str, Any]) -> Position:
    """Put `state` where this checkpoint's was taken.

    Raises: UsageError if base, data or edits are not those of the checkpoint, SmidgenError if it is
        damaged.
    """
    try:
        document = json.loads((folder / "state.json").read_text())
        if document.pop("format_version") > FORMAT_VERSION:
            raise SmidgenError(f"{folder} was written by a newer smidgen; upgrade smidgen")
        position = Position(**document)
        _check_identity(folder, position.identity, identity)
        tensors = load_file(folder / "state.safetensors")
        check_finite(tensors, folder, "remove it to resume at an earlier checkpoint")
        _restore_tensors(state, tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise SmidgenError(
            f"{folder} is damaged ({error}); remove it to resume at an earlier checkpoint"
        ) from error
    state.order.seek(position.epoch, position.position)
    state.step, state.best, state.seconds = position.step, position.best, position.seconds
    return position


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return _numbered((folder / "checkpoints").glob("step-*"))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for path in (folder / "checkpoints").glob("step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    for name in (".delta.safetensors", ".recipe.toml", "deltas/.step-*"):
        for path in folder.glob(f"{name}.*.partial"):
            path.unlink(missing_ok=True)


def keep_newest(
    folder: Path, state: TrainingState, *, num_checkpoints: int, num_deltas: int
) -> None:
    """Remove all but the newest checkpoints, and all but the newest deltas and the best one."""
    for path in checkpoints(folder)[:-num_checkpoints]:
        shutil.rmtree(path, ignore_errors=True)
    best = state.best.get("step")
    for path in _numbered((folder / "deltas").glob("step-*.safetensors"))[:-num_deltas]:
        if step_of(path) != best:
            path.unlink(missing_ok=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint or delta, -1 if the name is not such a one."""
    match = STEP_NAME.fullmatch(path.name.removesuffix(".safetensors"))
    return int(match[1]) if match else -1


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line; what was saved before is never touched by it.

    Raises: SmidgenError.
    """
    with writing_files(path, AGAIN):
        yield


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"rng/{name}": value for name, value in state.streams.state().items()}
    for kind, delta in (("delta", state.delta), ("ema", state.average)):
        tensors |= {f"{kind}/{name}": value for name, value in delta.state_dict().items()}
    for name, parameter in state.delta.named_parameters():
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"{key}/{name}": moments[key] for key in MOMENTS if key in moments}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


@torch.no_grad()
def _restore_tensors(state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in state.delta.named_parameters():
        if f"delta/{name}" not in tensors:
            raise UsageError(
                f"the checkpoint lacks delta/{name}: it is of another method or version; "
                "give another output, or start over with force"
            )
        parameter.copy_(tensors[f"delta/{name}"])
        # copies: a file's tensors lie at other alignments, on which last bits may depend
        moments = {key: tensors[f"{key}/{name}"] for key in MOMENTS if f"{key}/{name}" in tensors}
        if moments:
            state.optimizer.state[parameter] = {
                key: value.clone().to(parameter.device) for key, value in moments.items()
            }
    for name, parameter in state.average.named_parameters():
        parameter.copy_(tensors[f"ema/{name}"])
    prefix = "rng/"
    state.streams.restore(
        {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    )


def _check_identity(folder: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    changed = [name for name in current if name != "the base" and saved[name] != current[name]]
    if not fingerprints_match(saved["the base"], current["the base"]):
        changed.append("the base")
    if changed:
        raise UsageError(
            f"{' and '.join(changed)} changed since {folder.parent.parent} was started: give "
            "another output, or start over with force"
        )


def _numbered(paths: Iterator[Path]) -> list[Path]:
    return sorted((path for path in paths if step_of(path) >= 0), key=step_of)
