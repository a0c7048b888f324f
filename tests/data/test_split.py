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


def test_copies_of_a_picture_stay_on_one_side_in_one_class_or_several() -> None:
    labels = [0] * 60 + [1] * 60
    contents = [f"{index % 40}" if index < 80 else f"single {index}" for index in range(120)]
    for seed in range(30):
        train, held = hold_out(labels, share=0.2, seed=seed, contents=contents)
        assert not {contents[i] for i in train.tolist()} & {contents[i] for i in held.tolist()}
        assert sorted([*train.tolist(), *held.tolist()]) == list(range(120))
        assert 22 <= len(held) <= 24


def test_without_copies_the_same_images_are_held_out_as_without_their_contents() -> None:
    for seed in range(10):
        expected = hold_out(LABELS, share=0.3, seed=seed)
        found = hold_out(LABELS, share=0.3, seed=seed, contents=[str(i) for i in range(100)])
        assert all(map(torch.equal, expected, found))
        # the first of each class in an order drawn for it: what a run on the same seed has drawn
        generator = torch.Generator().manual_seed(seed)
        orders = [
            torch.randperm(n, generator=generator) + b for n, b in ((50, 0), (30, 50), (20, 80))
        ]
        drawn = [order[:n] for order, n in zip(orders, (15, 9, 6), strict=True)]
        assert expected[1].tolist() == sorted(torch.cat(drawn).tolist())


def test_where_every_picture_has_more_copies_than_are_asked_for_the_fewest_are_held_out() -> None:
    contents = list("aaaa" * 2 + "bbb" + "cccc")
    train, held = hold_out([0] * 15, count=1, contents=contents)
    assert held.tolist() == [8, 9, 10]
    assert len(train) == 12
    # one picture alone stays where it is needed
    assert hold_out([0] * 4, count=2, contents="aaaa")[1].tolist() == []
    assert hold_out([0, 0, 1], count=1, contents="aaa")[1].tolist() == []
