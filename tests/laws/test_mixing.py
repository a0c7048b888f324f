"""The laws of banks and of arithmetic, with every tensor of base and deltas random."""

import pytest
import torch

from smidgen.core.arithmetic import combine, interpolate, scaled
from smidgen.core.bank import Bank
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError
from tests.laws.refusals import NO_STRENGTH, NOT_MIXED
from tests.tiny.bases import KNOWN_CLASSES, NEW_CLASSES
from tests.tiny.hosts import all_labels
from tests.tiny.weights import moved

ROUNDING = 1e-11  # float64; batched products sum in another order
CLASSES = (NEW_CLASSES, NEW_CLASSES[:2], KNOWN_CLASSES)
SLOTS, LABELS = (2, 0, -1, 1, 0), (1, 4, 3, 2, 0)  # each label is one of its slot's classes
WIDTH = {"lora": "rank", "adapter": "width", "adaptformer": "width"}


def deltas(case, num=3, classes=CLASSES, **config):
    """Several of one method, apart in their values and, where they can be, in width and classes."""
    found = []
    for seed in range(num):
        width = {WIDTH[case.method]: 4 + seed} if case.method in WIDTH else {}
        delta = case.make(classes=classes[seed % len(classes)], **width, **config)
        moved(delta, 0.1, seed=10 + seed)
        found.append(delta)
    return found


def one_by_one(case, each, slots):
    """Each image alone, with the delta of its slot attached."""
    everything, outputs = case.inputs, []
    for number, slot in enumerate(slots):
        case.inputs = tuple(tensor[number : number + 1] for tensor in everything)
        if slot < 0:
            with torch.no_grad():
                outputs.append(case.call())
        else:
            outputs.append(case.attached(each[slot]))
    case.inputs = everything
    return torch.cat(outputs)


def mixed(case, bank, slots):
    with torch.no_grad(), bank.attach(case.model):
        bank.choose(torch.tensor(slots))
        return case.call()


@pytest.mark.excepting(NOT_MIXED)
def test_a_mixed_batch_equals_one_by_one(case):
    case.use_labels(torch.tensor(LABELS))
    each = deltas(case)
    expected = one_by_one(case, each, SLOTS)
    output = mixed(case, Bank(each), SLOTS)
    case.assert_close(output, expected, at_least=ROUNDING)


@pytest.mark.only("vpt")
def test_tokens_are_mixed_where_no_weights_are_copied(case):
    case.use_labels(torch.tensor(LABELS))
    slots = (2, 0, 2, 1, 0)
    each = deltas(case, final_layer=False)
    expected = one_by_one(case, each, slots)
    output = mixed(case, Bank(each), slots)
    case.assert_close(output, expected, at_least=ROUNDING)


@pytest.mark.only(*NOT_MIXED)
def test_what_is_not_mixed_says_why(case):
    with pytest.raises(SmidgenError, match=NOT_MIXED[case.method]):
        Bank([case.delta])


@pytest.mark.excepting(NO_STRENGTH)
def test_strength_nought_is_the_base_and_strength_one_the_delta(case):
    case.use_labels(all_labels(KNOWN_CLASSES))
    delta = case.make(classes=KNOWN_CLASSES)
    with torch.no_grad():
        base = case.call()
    assert torch.equal(case.attached(delta, strength=0.0), base)
    assert torch.equal(case.attached(delta, strength=1.0), case.attached(delta))
    half = case.attached(delta, strength=0.5)
    assert (half - base).abs().max() > 1e-6
    assert (half - case.attached(delta)).abs().max() > 1e-6


@pytest.mark.only(*NO_STRENGTH)
def test_what_has_no_strength_says_why(case):
    delta = without_table(case.delta)
    with pytest.raises(SmidgenError, match=NO_STRENGTH[case.method]):
        delta.attach(case.model, 0.5)


@pytest.mark.labelled
@pytest.mark.excepting(NO_STRENGTH)
def test_new_classes_have_no_strength(case):
    with pytest.raises(SmidgenError, match='"label_table" has a row for "dog", a class that the'):
        case.delta.attach(case.model, 0.5)


@pytest.mark.excepting(NO_STRENGTH)
def test_interpolation_has_both_ends_and_starts_towards_the_other(case):
    one, two = deltas(case, num=2, classes=(NEW_CLASSES,))
    ends = case.attached(one), case.attached(two)
    assert torch.equal(case.attached(interpolate(one, two, 0.0)), ends[0])
    assert torch.equal(case.attached(interpolate(one, two, 1.0)), ends[1])
    near = case.attached(interpolate(one, two, 1e-4))
    # the output is smooth in the weights: one part in ten thousand of the way moves it little
    assert 0 < (near - ends[0]).abs().max() < 0.01 * (ends[1] - ends[0]).abs().max()


@pytest.mark.only("bitfit", "lora", "adapter", "adaptformer")
def test_a_sum_is_both_deltas_attached_where_all_edits_add(case):
    one, two = (without_table(delta) for delta in deltas(case, num=2, classes=(KNOWN_CLASSES,)))
    case.use_labels(all_labels(KNOWN_CLASSES))
    with torch.no_grad(), scaled(one, 0.5).attach(case.model), scaled(two, -2.0).attach(case.model):
        expected = case.call()
    output = case.attached(combine([one, two], [0.5, -2.0]))
    case.assert_close(output, expected, at_least=ROUNDING)


def without_table(delta: Delta) -> Delta:
    """Two tables cannot be attached at once, and a new class has no strength."""
    edits = {name: edit for name, edit in delta.edits.items() if name != "label_table"}
    return Delta(edits, delta.provenance)
