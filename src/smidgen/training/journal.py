"""What a run tells while it trains: RUN/log.jsonl, the trackers and the progress bar.

The training reads nothing of it back but which lines to keep.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from smidgen.files.reading import read_bytes
from smidgen.files.writing import write_text
from smidgen.processes import is_main, world_size
from smidgen.training.config import TrainingConfig
from smidgen.training.state import AGAIN, writing

SMOOTHING = 0.95  # of the loss in the bar
MOST_BYTES = 2**32  # of a log: tens of millions of steps
TRACK_EVERY = 10  # steps; trackers are slower than steps of a small model

Track = Callable[[Mapping[str, float], int], None]


class Journal:
    """Numbers of each step; a line of the file is a JSON object: `step`, then what there is."""

    def __init__(
        self, path: Path, first_step: int, images_per_step: int, bar: tqdm, track: Track
    ) -> None:
        self.path = path
        self.images_per_step = images_per_step  # of all processes together
        self._forget_after(first_step)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)
        self._bar = bar
        self._track = track
        self._loss: float | None = None
        self._last = time.perf_counter()

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """One training step."""
        now = time.perf_counter()
        rate = self.images_per_step / max(now - self._last, 1e-9)
        self._last = now
        values = {**values, "images_per_second": round(rate, 3)}
        self._write(step, values)
        if step % TRACK_EVERY == 0:
            self._track(values, step)
        loss = values["loss"]
        self._loss = loss if self._loss is None else SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        self._bar.set_postfix_str(f"loss {self._loss:.4f}", refresh=False)
        self._bar.update(self.images_per_step)

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers that come now and then: a validation, metrics. Their time counts for no step."""
        self._write(step, values)
        self._track(values, step)
        self._last = time.perf_counter()

    def close(self) -> None:
        """End the file."""
        self._file.close()

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        with writing(self.path):
            self._file.write(json.dumps({"step": step} | dict(values)) + "\n")

    def _forget_after(self, step: int) -> None:
        """Drop what a killed run logged after the checkpoint at which it now resumes."""
        if self.path != Path(os.devnull) and self.path.exists():
            kept = [line for line, record in read_log(self.path) if record["step"] <= step]
            write_text("".join(kept), self.path, AGAIN)


def read_log(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a log and what it says, without those that a kill cut or that are not ours.

    Raises: Unreadable.
    """
    for line in read_bytes(path, MOST_BYTES).splitlines(keepends=True):
        try:
            text = line.decode("utf-8")
            record = json.loads(text)  # which takes NaN too, as it is written
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield text, record


@contextmanager
def open_journal(
    folder: Path, first_step: int, config: TrainingConfig, track: Track, *, progress: bool
) -> Iterator[Journal]:
    """A journal whose bar counts images: loss, images per second and the time left. Of several
    processes the main one keeps it.
    """
    images_per_step = config.rows * config.gradient_accumulation * world_size()
    with tqdm(
        total=config.steps * images_per_step,
        initial=first_step * images_per_step,
        desc="training",
        unit="image",
        unit_scale=True,
        file=sys.stderr,
        disable=not (progress and is_main()),
        dynamic_ncols=True,
        smoothing=0.05,
    ) as bar:
        path = folder / "log.jsonl" if is_main() else Path(os.devnull)
        journal = Journal(path, first_step, images_per_step, bar, track)
        try:
            yield journal
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                journal.close()
            raise
        with writing(journal.path):
            journal.close()
