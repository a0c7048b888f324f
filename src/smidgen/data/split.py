"""Which images are held out for the validation loss: stratified, the same for the same seed, and
never the copy of one that is trained on.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import torch

from smidgen.errors import UsageError


def hold_out(
    labels: torch.Tensor | Sequence[int],
    *,
    share: float | None = None,
    count: int | None = None,
    seed: int = 0,
    contents: Sequence[Hashable] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices (int64) of training and of held-out images, a `share` or `count` of all.

    Every class gives in proportion to its images (largest remainders first) and keeps at least one
    for training; a share that asks for more than that gets what there is. Images of equal
    `contents` (a hash of each file; empty: all differ) are copies of one picture, which is held out
    with all of its copies or not at all. So fewer may be held out than were asked for, and more
    where no picture is that few: then the one with the fewest copies.

    Raises: UsageError if not exactly one of the two is given, for a share outside [0, 1), or a
        count that is negative or would leave a class without a training image.
    """
    labels = torch.as_tensor(labels).tolist()
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    sizes = {label: len(by_class[label]) for label in sorted(by_class)}
    quotas = _quotas([*sizes.values()], _wanted([*sizes.values()], share, count))
    left = dict(zip(sizes, quotas, strict=True))
    copies = _copies(contents)
    generator = torch.Generator().manual_seed(seed)
    held: set[int] = set()
    for label, size in sizes.items():
        order = torch.randperm(size, generator=generator).tolist()
        for index in (by_class[label][place] for place in order):
            if not left[label]:
                break
            same = copies.get(index, [index])
            needed = Counter(labels[one] for one in same)
            if index not in held and all(left[of] >= number for of, number in needed.items()):
                held.update(same)
                left |= {of: left[of] - number for of, number in needed.items()}
    if sum(quotas) and not held:
        held.update(_fewest_copies(copies, labels, sizes))
    kept = set(range(len(labels))) - held
    return (
        torch.tensor(sorted(kept), dtype=torch.long),
        torch.tensor(sorted(held), dtype=torch.long),
    )


def _copies(contents: Sequence[Hashable]) -> dict[int, list[int]]:
    """For each image that has copies, the indices of all of them."""
    by_content: dict[Hashable, list[int]] = {}
    for index, content in enumerate(contents):
        by_content.setdefault(content, []).append(index)
    return {one: same for same in by_content.values() if len(same) > 1 for one in same}


def _fewest_copies(
    copies: Mapping[int, list[int]], labels: Sequence[int], sizes: Mapping[int, int]
) -> list[int]:
    """The picture with the fewest copies that leaves each class a training image, or none."""
    fitting = [
        same
        for same in copies.values()
        if all(n < sizes[of] for of, n in Counter(labels[one] for one in same).items())
    ]
    return min(fitting, key=len, default=[])


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
