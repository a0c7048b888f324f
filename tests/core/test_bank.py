"""Banks: a mixed batch equals each image alone, without compiling again, and what is refused."""

import jaxtyping
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from smidgen.core.bank import Bank
from smidgen.core.bypass import Bottleneck, Bypass, Conv, ConvBottleneck, Linear
from smidgen.core.delta import Delta
from smidgen.core.edits import Scale, Shift, Table, Weight
from smidgen.core.fingerprint import fingerprint
from smidgen.core.sites import Site
from smidgen.core.tokens import Tokens
from smidgen.errors import SmidgenError
from tests.tiny.deltas import provenance
from tests.tiny.handmade import NUM_OLD_ROWS, WIDTH, Network
from tests.tiny.weights import lively

NUM_ROWS = (9, 4, 6)
STEM = Site("stem", "in", axis=1), (Site("stem", axis=1),)
POINT = Conv(kernel=(1, 1), stride=(1, 1), padding=(0, 0), dilation=(1, 1))


def edits(width, num_rows):
    """All that can be mixed, at every kind of site."""
    stream = Site("blocks.1", index=1)
    inner = Site("blocks.0.mixer.inner", "in"), (Site("blocks.0.mixer.inner"),)
    return {
        "label_table": Table(
            Site("table", "in"), Site("table"), NUM_OLD_ROWS, torch.ones(num_rows, WIDTH)
        ),
        "stem.lora": Bypass(
            *STEM, Bottleneck(3, width, WIDTH, activation="identity", bias=False, conv=POINT)
        ),
        "stem.adapter": Bypass(*STEM, ConvBottleneck(3, width, WIDTH, groups=1, activation="relu")),
        "stem.layer": Bypass(*STEM, Linear(3, WIDTH), scale=0.5 * width),
        "stem.point": Bypass(*STEM, Bottleneck(3, width, WIDTH, activation="sigmoid", bias=True)),
        "stem.gain": Scale(Site("stem", axis=1), WIDTH),
        "stem.offset": Shift(Site("stem", axis=1), WIDTH),
        "blocks.0.lora": Bypass(
            *inner,
            Bottleneck(WIDTH, width, 5, activation="identity", bias=False),
            scale=0.5 * width,
            rows=(2, 7),
        ),
        "blocks.0.modulation.gain": Scale(Site("blocks.0.modulation"), 2 * WIDTH),
        "blocks.1.adapter": Bypass(
            Site("blocks.1.mixer", "in", "h"),
            (Site("blocks.1.mixer.proj"), stream),
            Bottleneck(WIDTH, width, WIDTH, activation="gelu", bias=True),
        ),
        "blocks.1.offset": Shift(stream, WIDTH),
    }


def deltas():
    """Three, of other widths and numbers of classes."""
    cases = zip((2, 3, 1), NUM_ROWS, strict=True)
    return [
        lively(Delta(edits(*case), provenance()).double(), seed)
        for seed, case in enumerate(cases, start=5)
    ]


def network():
    return Network().double()


def images(batch):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, 4, 4, generator=generator, dtype=torch.float64)


def alone(model, each, x, y, slots):
    """Every image by itself, with its delta attached."""
    outputs = []
    with torch.no_grad():
        for number, slot in enumerate(slots):
            image = x[number : number + 1], y[number : number + 1]
            if slot < 0:
                outputs.append(model(*image))
            else:
                with each[slot].attach(model):
                    outputs.append(model(*image))
    return torch.cat(outputs)


SLOTS, LABELS = torch.tensor([1, 0, -1, 2, 0, -1]), torch.tensor([3, 8, 4, 5, 2, 0])


def test_a_mixed_batch_equals_one_by_one():
    model, each, x = network(), deltas(), images(6)
    expected = alone(model, each, x, LABELS, SLOTS)
    bank = Bank(each)
    with bank.attach(model), torch.no_grad():
        bank.choose(SLOTS)
        torch.testing.assert_close(model(x, LABELS), expected, rtol=1e-12, atol=1e-12)
        bank.choose(torch.tensor([2]))
        torch.testing.assert_close(model(x[3:4], LABELS[3:4]), expected[3:4])


def test_a_bank_and_a_delta_may_be_kept_on_another_device_than_the_network():
    """The meta device computes shapes only, and refuses tensors of others as any device does."""
    model, each = network().to("meta"), deltas()
    x, y = images(3).to("meta"), torch.zeros(3, dtype=torch.long, device="meta")
    bank = Bank(each)
    bank.choose(torch.tensor([2, -1, 0]))
    with torch.no_grad():
        for adaptable in (bank, each[0]):
            with adaptable.attach(model):
                assert model(x, y).device.type == "meta"


def test_every_edit_takes_part():
    model, each, x = network(), deltas(), images(6)
    expected = alone(model, each, x, LABELS, SLOTS)
    for name in each[0].edits:
        if name == "label_table":
            continue
        less = [Delta({n: e for n, e in d.edits.items() if n != name}, provenance()) for d in each]
        bank = Bank(less)
        with bank.attach(model), torch.no_grad():
            bank.choose(SLOTS)
            changed = (model(x, LABELS) - expected).abs().amax(dim=(1, 2)) > 1e-6
        assert torch.equal(changed, SLOTS >= 0), name


def test_the_slots_are_repeated_where_guidance_stacks_batches_and_nothing_else_passes():
    model, each, x = network(), deltas(), images(6)
    bank = Bank(each)
    expected = alone(model, each, x, LABELS[:3].repeat(2), SLOTS[:3].repeat(2))
    with bank.attach(model), torch.no_grad():
        with pytest.raises(SmidgenError, match="no slots are chosen"):
            model(x, LABELS)
        bank.choose(SLOTS[:3])
        torch.testing.assert_close(model(x, LABELS[:3].repeat(2)), expected)
        bank.choose(SLOTS[:4])
        with pytest.raises(SmidgenError, match=r"4 slots are chosen and table.in carries 6 images"):
            model(x, LABELS)


def test_entries_that_belong_to_one_image_use_its_slot():
    layer, site = nn.Identity(), Site("", repeats=2)
    each = [lively(Delta({"a": Shift(site, 3)}, provenance()), seed) for seed in (1, 2)]
    bank, x = Bank(each), torch.zeros(8, 3)
    with bank.attach(layer), torch.no_grad():
        bank.choose(torch.tensor([1, 0]))
        output = layer(x)
    one, two = (delta.edits["a"].offset for delta in each)
    assert torch.equal(output, torch.stack([two, two, one, one] * 2))


def test_null_labels_are_the_last_rows():
    bank = Bank(deltas())
    labels = bank.null_labels(torch.tensor([0, 1, 2, -1, 1]))
    assert labels.tolist() == [NUM_ROWS[0] - 1, NUM_ROWS[1] - 1, NUM_ROWS[2] - 1, 4, 3]
    with pytest.raises(SmidgenError, match="no label table"):
        Bank([Delta({"a": Shift(Site("head"), 3)}, provenance())]).null_labels(torch.tensor([0]))


def test_a_label_that_a_delta_does_not_know_is_not_taken_from_another():
    model, bank = network(), Bank(deltas())
    with bank.attach(model), torch.no_grad():
        bank.choose(torch.tensor([1, 0]))
        first, second = model(images(2), torch.tensor([5, 5]))
    assert first.isnan().all()
    assert second.isfinite().all()


def test_another_delta_takes_a_slot_in_place():
    model, each, x = network(), deltas(), images(6)
    bank = Bank([each[1], each[0], each[0]])  # the second is the widest in nothing
    narrow = Bank([each[2], each[2]])
    with pytest.raises(SmidgenError, match=r'"label_table" .* is 9 .* room for 6'):
        narrow.replace(0, each[0])
    bank.replace(0, each[0])
    bank.replace(1, each[1])
    bank.replace(2, each[2])
    assert bank.null_labels(torch.arange(3)).tolist() == [num - 1 for num in NUM_ROWS]
    expected = alone(model, each, x, LABELS, SLOTS)
    with bank.attach(model), torch.no_grad():
        bank.choose(SLOTS)
        torch.testing.assert_close(model(x, LABELS), expected)


def test_gradients_flow_to_the_stacks_only_if_asked_and_never_to_the_idle_slot():
    model, each, x = network(), deltas(), images(6)
    assert not any(parameter.requires_grad for parameter in Bank(each).parameters())
    bank = Bank(each, trainable=True)
    with bank.attach(model):
        bank.choose(SLOTS)
        model(x, LABELS).square().sum().backward()
    for number, delta in enumerate(each):
        chosen = [i for i, slot in enumerate(SLOTS) if slot == number]
        with delta.attach(model):
            model(x[chosen], LABELS[chosen]).square().sum().backward()
        for name in ("stem.gain", "blocks.0.modulation.gain"):
            found = bank.edits[name].gain.grad
            torch.testing.assert_close(found[number], delta.edits[name].gain.grad)
            assert not found[-1].any()


@pytest.fixture
def unchecked():
    """torch.compile cannot trace the checks of annotated shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
    torch.compiler.reset()


@pytest.mark.usefixtures("unchecked")
def test_choosing_and_replacing_do_not_compile_again():
    model, each, x = network(), deltas(), images(6)
    others = SLOTS.roll(1)
    expected = alone(model, each, x, torch.zeros_like(LABELS), others)
    bank, counter = Bank(each), CompileCounter()
    bank.replace(2, each[0])
    with bank.attach(model), torch.no_grad():
        whole = torch.compile(model, fullgraph=True, backend=counter)
        bank.choose(SLOTS)
        whole(x, torch.zeros_like(LABELS))
        bank.choose(others)
        bank.replace(2, each[2])
        torch.testing.assert_close(whole(x, torch.zeros_like(LABELS)), expected)
    assert counter.frame_count == 1


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Softmax(dim=1)

    def forward(self, x):
        return self.block(x)


def test_each_image_gets_its_own_tokens_and_none_may_go_without():
    model, x = Sequence(), images(4).flatten(2)  # (B, N, C)
    each = [
        lively(Delta({"p": Tokens(Site("block", "in"), Site("block"), 2, 16)}, provenance()), s)
        for s in (1, 2)
    ]
    bank = Bank(each)
    with bank.attach(model), torch.no_grad():
        bank.choose(torch.tensor([1, 0, 0, 1]))
        output = model(x)
        with pytest.raises(SmidgenError, match="-1 is the base, which has no added tokens"):
            bank.choose(torch.tensor([0, -1]))
    for number, slot in enumerate([1, 0, 0, 1]):
        with each[slot].attach(model), torch.no_grad():
            torch.testing.assert_close(model(x[number : number + 1])[0], output[number])


# What is refused


def test_copies_of_weights_and_unlike_deltas_are_refused():
    model, each = network(), deltas()
    copy = Delta({"head": Weight("head", {"bias": model.head.bias})}, provenance())
    with pytest.raises(SmidgenError, match='"head" is a copy of weights'):
        Bank([copy])
    fewer = Delta({"stem.gain": each[0].edits["stem.gain"]}, provenance())
    with pytest.raises(
        SmidgenError, match=r'slot 1 has other edits than the first: "blocks\.0\.lora"'
    ):
        Bank([each[0], fewer])
    changed = dict(each[1].edits)
    changed["blocks.1.adapter"] = Bypass(
        Site("blocks.1.mixer", "in", "h"),
        (Site("blocks.1.mixer.proj"), Site("blocks.1", index=1)),
        Bottleneck(WIDTH, 3, WIDTH, activation="relu", bias=True),
    )
    with pytest.raises(SmidgenError, match=r'slot 1 differs from the first at edit "blocks\.1\.ad'):
        Bank([each[0], Delta(changed, provenance())])
    with pytest.raises(SmidgenError, match="at least one"):
        Bank([])


def test_slots_that_are_not_there_are_refused():
    bank = Bank(deltas())
    for slot in (3, -2):
        with pytest.raises(SmidgenError, match=f"slot {slot} of a bank with slots -1 to 2"):
            bank.choose(torch.tensor([0, slot]))
    with pytest.raises(SmidgenError, match="give one for each image"):
        bank.choose(torch.tensor([], dtype=torch.long))
    with pytest.raises(SmidgenError, match="slot -1 of a bank with slots 0 to 2"):
        bank.replace(-1, deltas()[0])


def test_a_bank_of_deltas_for_two_bases_is_refused():
    facts = {
        name: {"base": name, "fingerprint": fingerprint(Network(seed).state_dict())}
        for seed, name in enumerate(("one", "two"))
    }
    first, second = (
        Delta({"a": Shift(Site("head"), 3)}, provenance(**facts[name])) for name in facts
    )
    with pytest.raises(SmidgenError, match='made for base "two", the others for "one"'):
        Bank([first, second])
