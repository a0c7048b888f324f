"""The rows of a new word: which ids read them, what the others read, folding, sums and files."""

import dataclasses

import pytest
import torch
from torch import nn

from smidgen.core.arithmetic import combine, scaled
from smidgen.core.bank import Bank
from smidgen.core.delta import Delta, Provenance
from smidgen.core.fingerprint import fingerprint
from smidgen.core.fold import IntoTable, fold
from smidgen.core.sites import Site
from smidgen.core.word import Word
from smidgen.errors import SmidgenError

OLD, WIDTH = 7, 3


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(OLD, WIDTH)

    def forward(self, ids):
        return self.table(ids)


def delta_of(token="<owl>", first=OLD, num=2, seed=0) -> Delta:
    rows = torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(seed))
    word = Word(Site("table", "in"), Site("table"), token, first, OLD, rows)
    word.component = "text_encoder"
    mark = fingerprint({"table.weight": torch.zeros(OLD, WIDTH)})
    provenance = Provenance(
        method="textual-inversion", config={}, host="unet", base="b", fingerprint=mark, classes=(),
        training={}, components={"text_encoder": mark},
    )  # fmt: skip
    return Delta({"text_encoder.token": word}, provenance)


@pytest.fixture
def network():
    torch.manual_seed(1)
    return Network().requires_grad_(False)


def test_new_ids_read_the_words_rows_and_all_others_the_bases(network):
    delta, table = delta_of(), network.table.weight.clone()
    ids = torch.tensor([[0, OLD, 6], [OLD + 1, OLD, 3]])
    rows = delta.edits["text_encoder.token"].rows
    expected = torch.stack([table[0], rows[0], table[6], rows[1], rows[0], table[3]])
    with delta.attach(network, component="text_encoder"):
        found = network(ids)
        found.sum().backward()
    assert torch.equal(found, expected.view(2, 3, WIDTH))
    assert torch.equal(rows.grad, torch.tensor([[2.0] * WIDTH, [1.0] * WIDTH]))
    assert torch.equal(network.table.weight, table)


def test_unused_rows_of_the_base_behind_a_vocabulary_are_read_by_the_word(network):
    """A T5 has more rows than its tokenizer has tokens."""
    delta, table = delta_of(first=5, num=1), network.table.weight.clone()
    with delta.attach(network, component="text_encoder"):
        found = network(torch.tensor([4, 5, 6]))
    row = delta.edits["text_encoder.token"].rows.detach()
    assert torch.equal(found, torch.cat([table[4:5], row, table[6:]]))
    target = {Site("table"): IntoTable("table.weight")}
    folded = fold(delta, network.state_dict(), target, "text_encoder")["table.weight"]
    assert torch.equal(folded, torch.cat([table[:5], row, table[6:]]))


def test_an_edit_of_a_component_acts_nowhere_else(network):
    delta, ids = delta_of(), torch.tensor([1, 2])
    with delta.attach(network):
        assert torch.equal(network(ids), network.table.weight[ids])
    assert delta.components == ("text_encoder",)
    assert fold(delta, network.state_dict(), {})["table.weight"] is not None


def test_a_file_has_the_component_and_its_fingerprint_and_others_have_neither(tmp_path):
    delta = delta_of()
    delta.save(tmp_path / "word.safetensors")
    loaded = Delta.load(tmp_path / "word.safetensors")
    assert loaded.specs() == delta.specs()
    assert loaded.components == ("text_encoder",)
    assert loaded.provenance == delta.provenance
    loaded.check_component("text_encoder", delta.provenance.components["text_encoder"])
    other = fingerprint({"table.weight": torch.ones(OLD, WIDTH)})
    with pytest.raises(SmidgenError, match="weights of this base's text_encoder are others"):
        loaded.check_component("text_encoder", other)
    delta.provenance = dataclasses.replace(delta.provenance, components={})
    delta.save(tmp_path / "less.safetensors")
    with pytest.raises(SmidgenError, match='edits in "text_encoder" and no fingerprint'):
        Delta.load(tmp_path / "less.safetensors")


def test_folding_appends_the_rows(network):
    delta = delta_of()
    target = {Site("table"): IntoTable("table.weight")}
    folded = fold(delta, network.state_dict(), target, "text_encoder")["table.weight"]
    rows = delta.edits["text_encoder.token"].rows.detach()
    assert torch.equal(folded, torch.cat([network.table.weight, rows]))


def test_a_word_has_no_half_but_a_way_to_another_start_of_it(network):
    one, other = delta_of(seed=1), delta_of(seed=2)
    middle = combine([one, other], [0.25, 0.75]).edits["text_encoder.token"]
    a, b = (delta.edits["text_encoder.token"].rows for delta in (one, other))
    torch.testing.assert_close(middle.rows, 0.25 * a + 0.75 * b)
    with pytest.raises(SmidgenError, match='new word "<owl>", of which the base has nothing'):
        scaled(one, 0.5)
    with pytest.raises(SmidgenError, match='"<fox>", the first "<owl>": two words have no sum'):
        combine([one, delta_of("<fox>")], [0.5, 0.5])


def test_two_words_at_once_and_a_bank_are_refused(network):
    with (
        delta_of().attach(network, component="text_encoder"),
        pytest.raises(SmidgenError, match="both replace table"),
    ):
        delta_of("<fox>").attach(network, component="text_encoder")
    with pytest.raises(SmidgenError, match="acts in text_encoder, which reads the prompts of all"):
        Bank([delta_of()])


def test_a_table_of_another_size_is_refused():
    network = Network()
    network.table = nn.Embedding(OLD + 1, WIDTH)
    with pytest.raises(SmidgenError, match="8 rows where the delta expects 7"):
        delta_of().attach(network, component="text_encoder")
