"""When and what a run saves: checkpoints, deltas, and the report of a loss that is not finite. Of
several processes the main one writes, and all read.

The files themselves are in state.py. Their order makes a kill harmless at any moment: what a
checkpoint promises is written before it, what it makes superfluous is removed after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from smidgen.core.delta import Delta
from smidgen.data.latents import LatentSet
from smidgen.errors import SmidgenError
from smidgen.files.writing import write_json
from smidgen.models.base import Base
from smidgen.processes import barrier, gather_list, is_main, shared, world_size
from smidgen.training.buckets import BUCKETS, identity_of_buckets
from smidgen.training.config import TrainingConfig
from smidgen.training.recipe import DELTA
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

    def resume(self) -> Mapping[str, Any]:
        """Put the state where the newest checkpoint was taken, if there is one; returns the loss
        scaling of fp16 there.

        Raises: UsageError, SmidgenError as `restore_checkpoint`; SmidgenError if the processes see
            different checkpoints.
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
        return scaler

    def keep_delta(self) -> None:
        """Write the average as RUN/deltas/step-N."""
        if is_main():
            path = self._folder / "deltas" / f"step-{self._state.step}.safetensors"
            self._average().save(path)
            self._prune()

    def checkpoint(self, scaler: Mapping[str, Any]) -> None:
        """Write RUN/delta.safetensors, then the checkpoint, then remove what is too old."""
        if is_main():
            self._average().save(self._folder / DELTA)
            save_checkpoint(self._folder, self._state, self._identity, scaler)
            self._prune()

    def finish(self) -> None:
        """Write RUN/delta.safetensors where somebody took it away: the checkpoint holds it."""
        if is_main() and not (self._folder / DELTA).is_file():
            self._average().save(self._folder / DELTA)
        barrier()

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
