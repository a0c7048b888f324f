"""Parts of a delta: which edits words mean, and that the others do not act."""

import pytest
import torch

from smidgen.core.delta import Delta
from smidgen.core.partial import part_of
from smidgen.errors import UsageError
from tests.tiny.bases import NEW_CLASSES, Base, tiny_base
from tests.tiny.deltas import tiny_delta


@pytest.fixture(scope="module")
def base() -> Base:
    base = tiny_base()
    base.denoiser.double()
    return base


@pytest.mark.parametrize(
    ("method", "words", "kept"),
    [
        ("difffit", "-table", lambda name, edit: edit.kind != "table"),
        ("difffit", "scale", lambda name, edit: edit.kind == "scale"),
        ("difffit", "scale, table", lambda name, edit: edit.kind in ("scale", "table")),
        ("difffit", "blocks.1", lambda name, edit: "blocks.1." in f"{edit.sites[0].module}."),
        (
            "difffit",
            "blocks.1,-shift",
            lambda name, edit: (
                edit.sites[0].module.startswith("blocks.1.") and edit.kind == "scale"
            ),
        ),
        ("full", "denoiser,-table,-final_layer", lambda name, edit: _trunk(name)),
        ("full", "all", lambda name, edit: True),
    ],
)
def test_words_mean_edits_by_kind_component_and_module(base, method, words, kept):
    delta = tiny_delta(base, method)
    part = part_of(delta, words)
    expected = [name for name, edit in delta.edits.items() if kept(name, edit)]
    assert 0 < len(expected) <= len(delta.edits)
    assert list(part.edits) == expected
    assert all(part.edits[name] is delta.edits[name] for name in expected)


def _trunk(name: str) -> bool:
    return name != "label_table" and not name.startswith("final_layer")


def test_a_module_is_no_beginning_of_a_name(base):
    delta = tiny_delta(base, "difffit")
    with pytest.raises(UsageError, match='"block" means none of this delta'):
        part_of(delta, "block")
    with pytest.raises(UsageError, match=r'"blocks\.1\.attn\.q" means none of this delta'):
        part_of(delta, "blocks.1.attn.q")


def test_without_its_table_a_delta_is_of_the_bases_own_classes(base):
    delta = tiny_delta(base, "difffit")
    assert part_of(delta, "-table").provenance.classes == ()
    assert part_of(delta, "-scale").provenance.classes == NEW_CLASSES
    assert part_of(delta, "-table").provenance.training["edits"] == "-table"
    assert part_of(delta, "all") is delta
    assert part_of(delta, "base") is None


def test_what_is_left_out_does_not_act(base):
    delta = tiny_delta(base, "difffit")
    left = Delta(
        {name: edit for name, edit in delta.edits.items() if edit.kind != "table"},
        delta.provenance,
    )
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    arguments = (x, torch.tensor([3, 700]), torch.tensor([0, 2]))
    outputs = []
    for one in (part_of(delta, "-table"), left, delta):
        with one.attach(base.denoiser), torch.no_grad():
            outputs.append(base.denoiser(*arguments))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("scael", 'edits: "scael" means none of this delta; did you mean "scale"?'),
        ("bypass", 'edits: "bypass" means none of this delta'),
        ("scale,-scale", 'edits "scale,-scale" leaves none of the'),
        ("-denoiser", 'edits "-denoiser" leaves none of the'),
    ],
)
def test_words_that_mean_nothing_are_one_line(base, words, message):
    with pytest.raises(UsageError) as error:
        part_of(tiny_delta(base, "difffit"), words)
    assert message in str(error.value)
