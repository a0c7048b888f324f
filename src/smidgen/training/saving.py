"""When and what a run saves: checkpoints, deltas, and the report of a loss that is not finite. Of
several processes the main one writes, and all read.

The files themselves are in state.py. Their order makes a kill harmless at any moment: what a
checkpoint promises is written before it, what it makes superfluous is removed after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.data.latents import LatentSet
from smidgen.errors import SmidgenError
from smidgen.files.run_files import DELTA
from smidgen.files.standing import START_OVER
from smidgen.files.writing import write_json
from smidgen.models.base import Base
from smidgen.processes import barrier, gather_list, is_main, shared, world_size
from smidgen.training.buckets import BUCKETS, identity_of_buckets
from smidgen.training.config import TrainingConfig
from smidgen.training.start import NO_START, START
from smidgen.training.state import (
    AGAIN,
    CAPTIONS,
    CLASS_IMAGES,
    NO_CAPTIONS,
    NO_CLASS_IMAGES,
    TrainingState,
    checkpoints,
    keep_newest,
    remove_leftovers,
    restore_checkpoint,
    save_checkpoint,
    step_of,
)

NAMES_SHOWN = 5

logger = logging.getLogger(__name__)


class Saver:
    """Saves one run's state below its folder."""

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        config: TrainingConfig,
        identity: Mapping[str, str],
    ) -> None:
        self._folder = folder
        self._state = state
        self._config = config
        self._identity = identity
        self._promised: int | None = None  # the best step, by the newest checkpoint

    def resume(self) -> Mapping[str, Any]:
        """Put the state where the newest checkpoint was taken, if there is one; returns the loss
        scaling of fp16 there.

        Raises: UsageError, SmidgenError as `restore_checkpoint`; SmidgenError if the processes see
            different checkpoints, or the best delta, which the run may end with, is gone.
        """
        if is_main():
            remove_leftovers(self._folder)
        barrier()
        found = checkpoints(self._folder)
        scaler = restore_checkpoint(found[-1], self._state, self._identity).scaler if found else {}
        steps = gather_list([self._state.step])
        if len(set(steps)) > 1:
            raise SmidgenError(
                f"the processes see checkpoints of steps {steps} in {self._folder}; put the run's "
                "folder on a disk that all of them share"
            )
        best = self._promised = self._best_step()
        if self._config.keep == "best" and best is not None and not self._file(best).is_file():
            raise SmidgenError(
                f"{self._file(best)} is gone, the best delta of this run; put it back, or "
                f"{START_OVER}"
            )
        return scaler

    def keep_delta(self) -> None:
        """Write the average as RUN/deltas/step-N."""
        if is_main():
            self._average().save(self._file(self._state.step))
            self._prune()

    def checkpoint(self, scaler: Mapping[str, Any]) -> None:
        """Write RUN/delta.safetensors, then the checkpoint, then remove what is too old."""
        if is_main():
            self._kept().save(self._folder / DELTA)
            save_checkpoint(self._folder, self._state, self._identity, scaler)
            self._promised = self._best_step()
            self._prune()

    def finish(self) -> Delta:
        """What the run ends with. RUN/delta.safetensors is written where somebody took it away."""
        if is_main() and not (self._folder / DELTA).is_file():
            self._kept().save(self._folder / DELTA)
        barrier()
        if self._config.keep == "last":
            return self._state.average
        kept = Delta.load(self._folder / DELTA)
        logger.info("kept is the delta of step %s, the best", kept.provenance.training["step"])
        return kept

    def stop_at_non_finite(
        self,
        step: int,
        losses: Sequence[Tensor],
        indices: Sequence[Tensor],
        names: Sequence[str],
    ) -> NoReturn:
        """Raises: SmidgenError naming the images, all of which go to RUN/nonfinite.json."""
        batch = [names[int(index)] for index in torch.cat(list(indices))]
        finite = torch.isfinite(torch.cat([part.detach() for part in losses])).tolist()
        guilty = [name for name, is_finite in zip(batch, finite, strict=True) if not is_finite]
        batch, guilty = gather_list(batch), gather_list(guilty)
        report = self._folder / "nonfinite.json"
        if is_main():
            document = {"step": step, "not_finite": guilty, "batch": batch}
            write_json(document, report, AGAIN)
        shown = guilty or batch
        more = f" and {len(shown) - NAMES_SHOWN} more" if len(shown) > NAMES_SHOWN else ""
        what = "the loss of" if guilty else "a gradient of the batch of"
        saved = checkpoints(self._folder)
        kept = f"step {step_of(saved[-1])} is saved" if saved else "nothing was saved yet"
        message = (
            f"step {step}: {what} {', '.join(shown[:NAMES_SHOWN])}{more} is not finite ({kept}; "
            f"all names: {report}); look at these files, or lower lr"
        )
        raise shared(SmidgenError(message))

    def _best_step(self) -> int | None:
        return int(self._state.best["step"]) if self._state.best else None

    def _file(self, step: int) -> Path:
        return self._folder / "deltas" / f"step-{step}.safetensors"

    def _kept(self) -> Delta:
        """What the run would end with now: the average, or the best one before."""
        best = self._best_step()
        if self._config.keep == "last" or best in (None, self._state.step):
            return self._average()
        return Delta.load(self._file(best))

    def _average(self) -> Delta:
        """The average with where it stands in its provenance, which holds no time and no place: a
        resumed run writes the same bytes.
        """
        average = self._state.average
        provenance = self._state.delta.provenance
        training = dict(provenance.training) | {"step": self._state.step}
        average.provenance = dataclasses.replace(provenance, training=training)
        return average

    def _prune(self) -> None:
        keep_newest(
            self._folder,
            self._state,
            num_checkpoints=self._config.keep_checkpoints,
            num_deltas=self._config.keep_deltas,
            promised=self._promised,
        )


def identity_of(base: Base, latents: LatentSet, start: str | None) -> dict[str, str]:
    """What must be the same for a run to be resumed: the base and its codec, the images, their
    buckets, those of a subject's class and their captions, how many processes share the work, and
    the `start` (`start.identity_of_start`).
    """
    own, others = latents.num_own, latents.class_images
    captions = json.dumps(latents.captions).encode()
    return {
        "the base": base.fingerprint,
        "the codec": base.codec.fingerprint,
        "the images": identity_of_images(
            latents.names[:own], latents.class_numbers[:own], latents.contents[:own]
        ),
        BUCKETS: identity_of_buckets(latents.image_sizes, base.image_size),
        CLASS_IMAGES: NO_CLASS_IMAGES
        if others is None
        else identity_of_images(others.names, others.class_numbers, others.contents),
        CAPTIONS: NO_CAPTIONS if latents.captions is None else hashlib.sha256(captions).hexdigest(),
        "the number of processes": str(world_size()),
        START: start or NO_START,
    }


def identity_of_images(names: Sequence[str], class_numbers: Tensor, contents: Sequence[str]) -> str:
    """A SHA-256 of what images are trained on: names, class numbers (N,), files' SHA-256."""
    digest = hashlib.sha256("\0".join(names).encode(errors="surrogatepass"))
    digest.update(class_numbers.to(torch.int64).numpy().tobytes())
    digest.update("\0".join(contents).encode())
    return digest.hexdigest()
