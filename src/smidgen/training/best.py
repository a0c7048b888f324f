"""Which of the deltas that a run judges on its way is the best one, and when that ends the run."""

from __future__ import annotations

from collections.abc import Mapping

from smidgen.errors import SmidgenError
from smidgen.training.config import TrainingConfig

LOSS, KID, SPREAD = "loss", "kid", "kid_std"


def judged_by_kid(config: TrainingConfig) -> bool:
    """Whether the best is that of the samples' KID, in place of the validation loss."""
    return (config.keep == "best" or config.patience is not None) and config.metrics_every > 0


def ran_out(since_best: int, patience: int | None) -> bool:
    """Whether a run ends after so many judgements without a better one."""
    return patience is not None and since_best >= patience


def is_better(found: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """Whether what was `found` at a step makes it better than the `best` one before, or than one
    that was judged otherwise, or none.

    By validation loss the lower is better. KID, whose mean and spread over subsets make an
    interval, must be lower by so much that the two intervals are apart: of steps that cannot be
    told apart the earliest is the best.

    Raises: SmidgenError for metrics without a KID.
    """
    if LOSS in found:
        return LOSS not in best or found[LOSS] < best[LOSS]
    if KID not in found or SPREAD not in found:
        raise SmidgenError(
            f"the best is judged by KID where metrics are measured, and these have none "
            f"({', '.join(found)}); leave metrics_every out and it is judged by the validation loss"
        )
    return KID not in best or found[KID] + found[SPREAD] < best[KID] - best[SPREAD]
