"""The state of a training and its files: RUN/checkpoints, RUN/deltas and RUN/delta.safetensors.

A checkpoint is a folder with state.safetensors and state.json: delta, average, optimizer, step,
data position and random generators, never the base. It gets its name only when it is complete.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.core.fingerprint import fingerprints_match
from smidgen.core.weights import read_safetensors
from smidgen.errors import SmidgenError, UsageError
from smidgen.files.reading import Unreadable, read_json
from smidgen.files.standing import START_OVER
from smidgen.files.writing import PARTIAL, flush, partial_of, write_json
from smidgen.files.writing import writing as writing_files
from smidgen.training.buckets import BUCKETS, NO_BUCKETS, BucketOrder
from smidgen.training.optimizer import AdamW8bit, fresh_moments
from smidgen.training.randomness import Shuffle, Streams

FORMAT_VERSION = 2  # 1 knew images by the latents of a part of them
STATE, TENSORS = "state.json", "state.safetensors"
AGAIN = (  # what to do where the disk refused: what was saved before is never touched by it
    "make room and run the same command again: it resumes at the last checkpoint, which is intact"
)
writing = functools.partial(writing_files, remedy=AGAIN)
# in an identity
CAPTIONS, NO_CAPTIONS = "the captions", "none"
PATH, HOOKS, FAST = "whether the delta is folded in (fast)", "hooks", "fast"
CLASS_IMAGES, NO_CLASS_IMAGES = "the class images", "none"
STEP_NAME = re.compile(r"step-(\d+)")


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """The plain numbers of a checkpoint.

    `epoch` and `position` are those of the first bucket of images, `buckets` has those of the
    others. `class_epoch` and `class_position` are those of a subject's class images; `identity`
    tells whether base and data are still the same, `best` is the best validation so far ({} or
    step and loss), `since_best` counts those after it, `seconds` is the training time, `scaler` the
    loss scaling of fp16.
    """

    format_version: int
    step: int
    epoch: int
    position: int
    buckets: list[tuple[int, int]] = []
    class_epoch: int = 0
    class_position: int = 0
    identity: dict[str, str]
    best: dict[str, int | float] = {}
    since_best: int = 0
    seconds: float = 0.0
    scaler: dict[str, int | float] = {}


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a step changes; `class_order` is that of a subject's class images."""

    delta: Delta
    average: Delta
    optimizer: torch.optim.Optimizer
    streams: Streams
    order: BucketOrder
    class_order: Shuffle | None = None
    step: int = 0
    best: Mapping[str, float] = field(default_factory=dict)
    since_best: int = 0
    seconds: float = 0.0

    def take(self, count: int) -> Tensor:
        """The next `count` images, each with one of its class behind it where there are such."""
        images = self.order.take(count)
        if self.class_order is None:
            return images
        return torch.stack([images, self.class_order.take(count)], dim=1).flatten()


def save_checkpoint(
    folder: Path, state: TrainingState, identity: Mapping[str, str], scaler: Mapping[str, Any]
) -> None:
    """Write checkpoints/step-N of this state below `folder`, complete or not at all.

    Raises: SmidgenError if the disk refuses; older checkpoints are as they were.
    """
    final = folder / "checkpoints" / f"step-{state.step}"
    partial = partial_of(final)
    (epoch, place), *others = state.order.places
    position = Position(
        format_version=FORMAT_VERSION,
        step=state.step,
        epoch=epoch,
        position=place,
        buckets=others,
        class_epoch=0 if state.class_order is None else state.class_order.epoch,
        class_position=0 if state.class_order is None else state.class_order.position,
        identity=dict(identity),
        best=dict(state.best),
        since_best=state.since_best,
        seconds=state.seconds,
        scaler=dict(scaler),
    )
    with writing(final):
        try:
            partial.mkdir(parents=True)
            save_file(_tensors(state), partial / TENSORS)
            write_json(msgspec.to_builtins(position), partial / STATE)
            for path in (partial / TENSORS, partial):
                flush(path)
            _remove(final)
            partial.rename(final)
            flush(final.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def read_position(checkpoint: Path) -> Position:
    """The plain numbers of a checkpoint.

    Raises: SmidgenError if it is damaged or of a newer smidgen.
    """
    try:
        position = read_json(checkpoint / STATE, Position)
    except Unreadable as error:
        raise _damaged(checkpoint, error.reason) from error
    if position.format_version > FORMAT_VERSION:
        raise SmidgenError(f"{checkpoint} was written by a newer smidgen; upgrade smidgen")
    places = [position.epoch, position.position, position.class_epoch, position.class_position]
    places += [number for place in position.buckets for number in place]
    if position.step != step_of(checkpoint) or min(places) < 0:
        raise _damaged(checkpoint, f"its {STATE} says step {position.step}")
    return position


def restore_checkpoint(
    checkpoint: Path, state: TrainingState, identity: Mapping[str, str]
) -> Position:
    """Put `state` where this checkpoint's was taken; nothing changes if that cannot be.

    Raises: UsageError if base, data or edits are not those of the checkpoint, SmidgenError if it is
        damaged.
    """
    position = read_position(checkpoint)
    check_identity(checkpoint.parent.parent, position, identity)
    try:
        tensors, _ = read_safetensors(checkpoint / TENSORS)
    except SmidgenError as error:
        raise _damaged(checkpoint, str(error)) from error
    _check_tensors(checkpoint, state, tensors)
    try:
        state.streams.restore({n: tensors[f"rng/{n}"] for n in state.streams.state()})
        state.order.seek([(position.epoch, position.position), *position.buckets])
        if state.class_order is not None:
            state.class_order.seek(position.class_epoch, position.class_position)
    except (RuntimeError, ValueError, TypeError) as error:
        raise _damaged(checkpoint, str(error)) from error
    _restore_tensors(state, tensors)
    state.step, state.best, state.seconds = position.step, position.best, position.seconds
    state.since_best = position.since_best
    return position


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return _numbered(path for path in found if (path / STATE).is_file())


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for place in (folder, folder / "checkpoints", folder / "deltas"):
        for path in (*place.glob(f".*{PARTIAL}"), *place.glob(f"step-*{PARTIAL}")):
            _remove(path)


def keep_newest(
    folder: Path,
    state: TrainingState,
    *,
    num_checkpoints: int,
    num_deltas: int,
    promised: int | None = None,
) -> None:
    """Remove all but the newest checkpoints, and all but the newest deltas, the best one and that
    of the step which is `promised`, the best one when the newest checkpoint was made.
    """
    for path in checkpoints(folder)[:-num_checkpoints]:
        _remove(path)
    needed = {state.best.get("step"), promised}
    for path in _numbered((folder / "deltas").glob("step-*.safetensors"))[:-num_deltas]:
        if step_of(path) not in needed:
            _remove(path)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint or delta, -1 if the name is not such a one."""
    match = STEP_NAME.fullmatch(path.name.removesuffix(".safetensors"))
    return int(match[1]) if match else -1


def check_identity(folder: Path, position: Position, current: Mapping[str, str]) -> None:
    """Raises: UsageError naming what is not the same as when the run in `folder` was started; what
    one of the two does not know is not compared.
    """
    unknown = {CAPTIONS: NO_CAPTIONS, CLASS_IMAGES: NO_CLASS_IMAGES}
    unknown |= {BUCKETS: NO_BUCKETS, PATH: HOOKS}
    saved = {"the number of processes": "1", **unknown, **position.identity}
    if position.format_version < FORMAT_VERSION:
        saved.pop("the images", None)
    shared = [name for name in current if name in saved]
    changed = [
        name
        for name in shared
        if not (
            fingerprints_match(saved[name], current[name])
            if name == "the base"
            else saved[name] == current[name]
        )
    ]
    if changed:
        raise UsageError(
            f"{' and '.join(changed)} changed since {folder} was started: give another output, or "
            f"{START_OVER}"
        )


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"rng/{name}": value for name, value in state.streams.state().items()}
    for kind, delta in (("delta", state.delta), ("ema", state.average)):
        tensors |= {f"{kind}/{name}": value for name, value in delta.state_dict().items()}
    for name, parameter in state.delta.named_parameters():
        moments = state.optimizer.state.get(parameter, {})
        tensors |= {f"{key}/{name}": value for key, value in moments.items()}
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _check_tensors(checkpoint: Path, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    """Every tensor that the state needs is there, finite, in its shape and type, and no other."""
    expected = {f"rng/{name}": value for name, value in state.streams.state().items()}
    moments: dict[str, dict[str, Tensor]] = {}
    eight_bit = isinstance(state.optimizer, AdamW8bit)
    for name, parameter in state.delta.named_parameters():
        values = parameter.detach()
        expected |= {f"delta/{name}": values, f"ema/{name}": values}
        fresh = fresh_moments(torch.empty_like(values, device="meta"), eight_bit=eight_bit)
        moments[name] = {f"{key}/{name}": value for key, value in fresh.items()}
    known = {**expected, **{key: one for kept in moments.values() for key, one in kept.items()}}
    odd = [name for name in expected if name not in tensors]
    odd += [name for name in tensors if name not in known]
    for kept in moments.values():
        missing = [key for key in kept if key not in tensors]
        odd += missing if len(missing) < len(kept) else []  # all or none
    if odd:
        raise UsageError(
            f"{checkpoint} has or lacks {odd[0]}: it is of another method or version; give another "
            f"output, or {START_OVER}"
        )
    for name, tensor in tensors.items():
        like = known[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise _damaged(
                checkpoint,
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, expected {like.dtype} "
                f"{tuple(like.shape)}",
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise _damaged(checkpoint, f"{name} is not finite")


@torch.no_grad()
def _restore_tensors(state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in state.delta.named_parameters():
        parameter.copy_(tensors[f"delta/{name}"])
        # copies: a file's tensors lie at other alignments, on which last bits may depend
        like = torch.empty_like(parameter, device="meta")
        fresh = fresh_moments(like, eight_bit=isinstance(state.optimizer, AdamW8bit))
        if f"step/{name}" in tensors:
            state.optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"].clone().to(parameter.device) for key in fresh
            }
    for name, parameter in state.average.named_parameters():
        parameter.copy_(tensors[f"ema/{name}"])


def _damaged(checkpoint: Path, why: str) -> SmidgenError:
    return SmidgenError(
        f"{checkpoint} is damaged ({why}); remove it to resume at an earlier checkpoint"
    )


def _remove(path: Path) -> None:
    """Whatever is there; what the system does not let go stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _numbered(paths: Iterable[Path]) -> list[Path]:
    return sorted((path for path in paths if step_of(path) >= 0), key=step_of)
