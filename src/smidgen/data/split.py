"""Which images are held out for the validation loss: stratified, and the same for the same seed."""

from collections.abc import Sequence

import torch

from smidgen.errors import UsageError


def hold_out(
    labels: torch.Tensor | Sequence[int],
    *,
    share: float | None = None,
    count: int | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices (int64) of training and of held-out images, a `share` or `count` of all.

    Every class gives in proportion to its images (largest remainders first) and keeps at least one
    for training; a share that asks for more than that gets what there is.

    Raises:
        UsageError: not exactly one of the two given, a share outside [0, 1), or a count that is
            negative or would leave a class without a training image.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(torch.as_tensor(labels).tolist()):
        by_class.setdefault(label, []).append(index)
    sizes = [len(by_class[label]) for label in sorted(by_class)]
    wanted = _wanted(sizes, share, count)
    generator = torch.Generator().manual_seed(seed)
    held: list[int] = []
    for label, quota in zip(sorted(by_class), _quotas(sizes, wanted), strict=True):
        indices = by_class[label]
        order = torch.randperm(len(indices), generator=generator)[:quota].tolist()
        held += [indices[place] for place in order]
    kept = set(range(sum(sizes))) - set(held)
    return (
        torch.tensor(sorted(kept), dtype=torch.long),
        torch.tensor(sorted(held), dtype=torch.long),
    )


def _wanted(sizes: Sequence[int], share: float | None, count: int | None) -> int:
    most = sum(sizes) - len(sizes)
    if (share is None) == (count is None):
        raise UsageError("hold out either a share or a count of the images")
    if count is None:
        if share is None or not 0 <= share < 1:
            raise UsageError(f"cannot hold out a share of {share}: give one from 0 to below 1")
        return min(round(share * sum(sizes)), most)
    if not 0 <= count <= most:
        raise UsageError(
            f"cannot hold out {count} of {sum(sizes)} images: with one training image left in "
            f"each of {len(sizes)} classes, give 0 to {most}"
        )
    return count


def _quotas(sizes: Sequence[int], wanted: int) -> list[int]:
    """How many each class gives: largest remainders, at most its size - 1, `wanted` in all."""
    total = max(1, sum(sizes))
    quotas = [wanted * size // total for size in sizes]
    # Furthest behind its exact proportion first; equal ones in the order of the classes.
    while sum(quotas) < wanted:
        behind = [
            (wanted * size - quota * total if quota < size - 1 else -total * total, -number)
            for number, (size, quota) in enumerate(zip(sizes, quotas, strict=True))
        ]
        quotas[-max(behind)[1]] += 1
    return quotas
