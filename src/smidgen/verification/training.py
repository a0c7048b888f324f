"""Two steps of a training, twice: the same bits, and a base that is untouched."""

from __future__ import annotations

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from smidgen.methods import configure
from smidgen.models.base import Base
from smidgen.training.config import RunConfig, TrainingConfig
from smidgen.training.described import settled
from smidgen.training.rehearsal import rehearse
from smidgen.verification.check import Check

METHOD, STEPS, NUM_CLASSES = "difffit", 2, 2


def check_training(base: Base) -> Check:
    """DiffFit on latents that are noise, in the precision that a training here has.

    Raises: SmidgenError for a base that cannot be trained.
    """
    before = digest_of(base.denoiser)
    with TemporaryDirectory(prefix="smidgen-") as folder:
        config = RunConfig(
            data=Path(folder),
            output=Path(folder) / "run",
            method=METHOD,
            method_config=configure(METHOD, {}),
            training=TrainingConfig(steps=STEPS, batch_size=2, seed=0),
        )
        precision = settled(base, config.resolved()).training.precision
        one, other = (_trained(base, config, Path(folder) / name) for name in ("one", "other"))
    largest = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
    same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    untouched = digest_of(base.denoiser) == before
    facts = {
        "method": METHOD,
        "steps": STEPS,
        "precision": precision,
        "trained": sum(tensor.numel() for tensor in one),
        "same_bits": same,
        "largest_difference": largest,
        "base_untouched": untouched,
    }
    parts = [
        f"two runs of {STEPS} steps end with "
        + ("the same bits" if same else f"deltas that differ by up to {largest:.1e}"),
        "the base's weights are " + ("untouched" if untouched else "changed"),
    ]
    status = "pass" if same and untouched else "fail"
    return Check(name="training", status=status, found="; ".join(parts), facts=facts)


def _trained(base: Base, config: RunConfig, folder: Path) -> list[Tensor]:
    delta = rehearse(base, config, NUM_CLASSES, folder, steps=STEPS).delta
    return [parameter.detach().cpu().clone() for parameter in delta.parameters()]


def digest_of(network: nn.Module) -> str:
    """The SHA-256 of all weights and buffers, in order."""
    total = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()
