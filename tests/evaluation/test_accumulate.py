"""What is collected of a stream does not depend on how the stream came."""

import dataclasses

import pytest
import torch

from smidgen.errors import SmidgenError
from smidgen.evaluation.accumulate import KEEPING, Accumulator
from smidgen.evaluation.metrics import inception_score
from smidgen.evaluation.similarity import directions, paired_cosine
from smidgen.evaluation.table import INCEPTION_HEAD, METRICS

COUNT, DIM = 53, 6
HEADS = {"colours": ("red", "green", "blue"), INCEPTION_HEAD: tuple("abcdefgh")}
STREAMED = frozenset({"fd", "inception_score", "clip_i", "clip_t", "class_agreement"})
KEPT = STREAMED | {"kid"}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FEATURES = 2 * normal(COUNT, DIM, seed=1) + 1
TEXTS = normal(COUNT, DIM, seed=2)
LOGITS = {head: normal(COUNT, len(names), seed=3) for head, names in HEADS.items()}
NAMES = [HEADS["colours"][number % 3] for number in range(COUNT)]


def accumulate(metrics: frozenset[str], parts: list[range]) -> Accumulator:
    accumulator = Accumulator(DIM, HEADS, metrics)
    for part in parts:
        rows = slice(part.start, part.stop)
        accumulator.update(
            FEATURES[rows],
            {head: values[rows] for head, values in LOGITS.items()},
            first_index=part.start,
            intended=NAMES[rows],
            texts=TEXTS[rows],
        )
    return accumulator


def batches(size: int) -> list[range]:
    return [range(start, min(start + size, COUNT)) for start in range(0, COUNT, size)]


@pytest.mark.parametrize("metrics", [STREAMED, KEPT])
def test_the_result_is_the_whole_set_in_order_however_it_is_cut_and_merged(metrics):
    first, second = batches(7)[::2], batches(7)[1::2]
    accumulator = accumulate(metrics, first[::-1])
    accumulator.merge(Accumulator(DIM, HEADS, metrics))
    accumulator.merge(accumulate(metrics, second))
    found = accumulator.result()
    assert found.count == accumulator.count == COUNT
    torch.testing.assert_close(found.gaussian.mean, FEATURES.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        found.gaussian.covariance, FEATURES.double().T.cov(), rtol=1e-12, atol=1e-13
    )
    mean_direction = directions(FEATURES).mean(dim=0)
    torch.testing.assert_close(found.mean_direction, mean_direction, rtol=1e-12, atol=0)
    assert found.intended == tuple(NAMES)
    for head, values in LOGITS.items():
        assert torch.equal(found.predictions[head], values.argmax(dim=1))
    assert found.text_cosines is not None
    torch.testing.assert_close(found.text_cosines, paired_cosine(FEATURES, TEXTS))
    score = inception_score(found.probabilities[INCEPTION_HEAD])
    whole = accumulate(metrics, [range(COUNT)]).result().probabilities
    assert score == pytest.approx(inception_score(whole[INCEPTION_HEAD]), rel=1e-9)


def test_with_features_kept_it_is_bit_for_bit_the_same():
    whole = accumulate(KEPT, [range(COUNT)]).result()
    cut = accumulate(KEPT, batches(5)[::-1]).result()
    assert torch.equal(cut.features, FEATURES)
    assert torch.equal(cut.gaussian.mean, whole.gaussian.mean)
    assert torch.equal(cut.gaussian.covariance, whole.gaussian.covariance)
    assert torch.equal(cut.mean_direction, whole.mean_direction)


def test_features_are_kept_only_where_a_metric_needs_them():
    for name, metric in METRICS.items():
        accumulator = accumulate(frozenset({name}), batches(20))
        kept = accumulator.result().features is not None
        assert kept == (metric.needs in KEEPING) == accumulator.keeps_features
        assert kept or all(batch.features is None for batch in accumulator.batches)


def test_the_accumulator_keeps_no_hold_of_what_it_was_given():
    values = FEATURES.clone()
    accumulator = Accumulator(DIM, (), {"kid"})
    accumulator.update(values, {})
    values.zero_()
    assert torch.equal(accumulator.result().features, FEATURES)


def test_merging_leaves_the_other_as_it_is_and_a_result_may_be_followed_by_more():
    first, second = accumulate(STREAMED, batches(9)[:2]), accumulate(STREAMED, batches(9)[2:])
    before = second.result()
    early = first.result()
    first.merge(second)
    assert first.result().count == COUNT
    assert early.count == 18
    for field in dataclasses.fields(before.gaussian):
        mine, theirs = (getattr(g, field.name) for g in (before.gaussian, second.result().gaussian))
        assert torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs))


def test_batches_without_an_index_follow_the_last_and_an_empty_one_is_nothing():
    accumulator = Accumulator(DIM, (), {"kid"})
    for part in (FEATURES[:4], FEATURES[:0], FEATURES[4:]):
        accumulator.update(part, {})
    assert [batch.first_index for batch in accumulator.batches] == [0, 4]
    assert torch.equal(accumulator.result().features, FEATURES)


def test_names_and_texts_are_unknown_if_one_batch_has_none():
    accumulator = accumulate(STREAMED, [range(10)])
    accumulator.update(FEATURES[10:], {head: values[10:] for head, values in LOGITS.items()})
    assert accumulator.result().intended is None
    assert accumulator.result().text_cosines is None


def test_features_that_are_not_finite_are_refused_with_their_images():
    accumulator = Accumulator(2, (), {"fd"})
    with pytest.raises(SmidgenError, match="images 30 to 31 are not finite"):
        accumulator.update(torch.tensor([[0.0, 1.0], [torch.inf, 0.0]]), {}, first_index=30)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="unknown metrics: fid"):
        Accumulator(DIM, HEADS, {"fid"})
    with pytest.raises(ValueError, match="inception_score needs the head"):
        Accumulator(DIM, {"colours": ()}, {"inception_score"})
    with pytest.raises(ValueError, match="no images"):
        Accumulator(DIM, (), {"fd"}).result()
    with pytest.raises(ValueError, match="image 5 was accumulated twice"):
        accumulate(KEPT, [range(5, 9), range(6)]).result()
    with pytest.raises(ValueError, match="cannot be merged"):
        accumulate(KEPT, []).merge(accumulate(STREAMED, []))
    accumulator = Accumulator(DIM, HEADS, STREAMED)
    with pytest.raises(ValueError, match="for 6 dimensions"):
        accumulator.update(FEATURES[:, :5], LOGITS)
    with pytest.raises(ValueError, match="must be 53 each"):
        accumulator.update(FEATURES, LOGITS, intended=NAMES[:7])
    with pytest.raises(ValueError, match="must be 53 each"):
        accumulator.update(FEATURES, {"colours": LOGITS["colours"]})
