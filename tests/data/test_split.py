"""Held-out images: stratified, repeatable, and never a class's last."""

import pytest
import torch

from smidgen.data.split import hold_out
from smidgen.errors import UsageError

LABELS = [0] * 50 + [1] * 30 + [2] * 20


def counts(indices: torch.Tensor) -> list[int]:
    return torch.tensor(LABELS)[indices].bincount(minlength=3).tolist()


def test_both_parts_are_a_partition_in_ascending_order() -> None:
    train, held = hold_out(LABELS, share=0.23, seed=4)
    assert len(held) == 23
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(100))
    assert train.tolist() == sorted(train.tolist())
    assert held.tolist() == sorted(held.tolist())
    assert train.dtype == held.dtype == torch.int64


def test_each_class_gives_in_proportion() -> None:
    assert counts(hold_out(LABELS, count=10)[1]) == [5, 3, 2]
    # 13 of 100: 6.5, 3.9 and 2.6; the two largest remainders are those of classes 1 and 2.
    assert counts(hold_out(LABELS, count=13)[1]) == [6, 4, 3]


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    first = hold_out(LABELS, count=20, seed=1)[1].tolist()
    assert hold_out(torch.tensor(LABELS), count=20, seed=1)[1].tolist() == first
    assert hold_out(LABELS, count=20, seed=2)[1].tolist() != first


def test_a_training_image_of_each_class_stays() -> None:
    train, held = hold_out(LABELS, count=97)
    assert counts(train) == [1, 1, 1]
    assert counts(held) == [49, 29, 19]
    train, held = hold_out([0, 1, 1, 2], share=0.9)
    assert len(held) == 1
    assert held.item() in (1, 2)


def test_nothing_may_be_held_out() -> None:
    for labels in (LABELS, [0, 1, 2]):
        train, held = hold_out(labels, count=0)
        assert train.tolist() == list(range(len(labels)))
        assert held.tolist() == []
    assert len(hold_out(LABELS, share=0.0)[1]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        *({"count": 98}, {"count": -1}),
        *({"share": 1.0}, {"share": float("nan")}, {"share": -0.1}),
        *({}, {"count": 1, "share": 0.1}),
    ],
)
def test_impossible_requests_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        hold_out(LABELS, **wrong)
