"""What a run tells while it trains: RUN/log.jsonl, the trackers and the progress bar.

Nothing here is read back by the training.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from smidgen.files.writing import write_text
from smidgen.processes import is_main, world_size
from smidgen.training.config import TrainingConfig
from smidgen.training.state import AGAIN, writing

SMOOTHING = 0.95  # of the loss in the bar
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
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the line that the kill cut
        write_text("".join(kept), self.path, AGAIN)


@contextmanager
def open_journal(
    folder: Path, first_step: int, config: TrainingConfig, track: Track, *, progress: bool
) -> Iterator[Journal]:
    """A journal whose bar counts images: loss, images per second and the time left. Of several
    processes the main one keeps it.
    """
    images_per_step = config.batch_size * config.gradient_accumulation * world_size()
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
