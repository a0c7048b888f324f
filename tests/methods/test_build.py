"""What every delta has besides its method's own edits, and where: the law of `build_delta`."""

import json
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from smidgen.core.edits import Shift, Weight
from smidgen.errors import SmidgenError
from smidgen.methods import METHODS, configure
from smidgen.methods.build import build_delta
from smidgen.methods.label_table import label_table
from tests.tiny.bases import NEW_CLASSES, law_base
from tests.tiny.deltas import DENOISER_METHODS, tiny_delta
from tests.tiny.hosts import TINY_HOSTS

# the names of the edits before and behind the label table of the tiny DiT; None: there is none
NEIGHBOURS = {
    "full": ("final_layer.adaLN_modulation.1", None),
    "bitfit": ("final_layer.linear.bias", None),
    "difffit": ("final_layer.linear.bias", "blocks.0.norm1.weight"),
    "adaptformer": (None, "blocks.0.adaptformer"),
    "vpt": (None, "blocks.0.prompt"),
    "lora": (None, "blocks.0.attn.qkv.lora_q"),
    "adapter": (None, "blocks.0.adapter"),
}


def _build(base, name, generator=None, classes=NEW_CLASSES, **options):
    generator = generator or torch.Generator().manual_seed(2)
    return build_delta(name, base, configure(name, options), classes, generator)


@pytest.mark.parametrize("method", DENOISER_METHODS)
def test_provenance_says_how_the_delta_was_built(method):
    base = law_base("dit")
    provenance = tiny_delta(base, method).provenance
    assert provenance.method == method
    assert (provenance.host, provenance.base) == ("dit", base.name)
    assert provenance.fingerprint == base.fingerprint
    assert provenance.classes == NEW_CLASSES
    assert provenance.training == {}
    assert json.loads(json.dumps(provenance.config)) == provenance.config
    assert METHODS[method].config(**provenance.config)  # names its fields and nothing else


def test_the_facts_of_a_training_are_part_of_the_provenance():
    config, generator = configure("bitfit"), torch.Generator()
    delta = build_delta(
        "bitfit", law_base("dit"), config, NEW_CLASSES, generator, training={"steps": 3}
    )
    assert delta.provenance.training == {"steps": 3}


def test_spaces_in_a_name_are_no_part_of_it():
    names = {
        name: _build(law_base("dit"), name).provenance.method for name in (" lora", "lora +vpt")
    }
    assert names == {" lora": "lora", "lora +vpt": "lora+vpt"}


@pytest.mark.parametrize("method", DENOISER_METHODS)
def test_the_label_table_stands_behind_what_the_base_has_and_before_what_is_new(method):
    edits = _build(law_base("dit"), method).edits
    names = [None, *edits, None]
    place = names.index("label_table")
    assert (names[place - 1], names[place + 1]) == NEIGHBOURS[method]
    assert all(isinstance(edits[name], Shift | Weight) for name in names[1:place])


@pytest.mark.parametrize("method", DENOISER_METHODS)
def test_a_base_without_labels_has_the_edits_of_the_method_alone(method):
    base = law_base("unet")
    assert "label_table" not in _build(base, method, classes=()).edits
    with pytest.raises(SmidgenError, match="unet base has no label table for 4 classes"):
        _build(base, method)


@pytest.mark.parametrize("name", ["lora+adapter", "adapter+vpt", "difffit+lora+adapter+vpt"])
def test_parts_draw_one_after_the_other_as_if_each_stood_alone(name):
    base = law_base("dit")
    generator = torch.Generator().manual_seed(5)
    expected = {}
    for part in name.split("+"):
        expected = _build(base, part, generator).state_dict() | expected  # the first table stays
    delta = _build(base, name, torch.Generator().manual_seed(5))
    found = delta.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize("method", DENOISER_METHODS)
def test_the_label_table_is_drawn_behind_the_edits_of_the_method(method):
    base, generator = law_base("dit"), torch.Generator().manual_seed(5)
    edits = import_module(f"smidgen.methods.{method}").build(base, configure(method), generator)
    rows = label_table(base, NEW_CLASSES, generator).rows
    delta = _build(base, method, torch.Generator().manual_seed(5))
    assert torch.equal(delta.edits["label_table"].rows, rows)
    assert delta.edits.keys() == {*edits, "label_table"}


def test_the_same_generator_builds_the_same_delta():
    base = law_base("dit")
    one, other = (_build(base, "difffit+adapter").state_dict() for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", DENOISER_METHODS)
def test_beside_a_base_without_weights_a_delta_has_shapes_alone_and_nothing_is_drawn(method):
    with torch.device("meta"):
        network = TINY_HOSTS["dit"].make(3)
    real = law_base("dit")
    base = replace(real, denoiser=network)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    delta = _build(base, method, generator)
    assert all(parameter.is_meta for parameter in delta.parameters())
    assert delta.specs() == _build(real, method).specs()
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", ["lora", "difffit+lora"])
def test_a_method_that_the_host_refuses_is_refused_with_the_reason(name):
    base = law_base("dit")
    base = replace(base, host=replace(base.host, refusals={"lora": "its linears are of wood"}))
    with pytest.raises(
        SmidgenError, match=r"^lora does not work on a dit base: its linears are of"
    ):
        _build(base, name)


def test_a_method_without_any_edit_finds_nothing_to_train():
    options = {"gammas": (), "biases": False, "layer_norm": False}
    with pytest.raises(
        SmidgenError, match=r"^difffit finds nothing to train in a unet base; choose"
    ):
        _build(law_base("unet"), "difffit", classes=(), **options)
    table_alone = _build(law_base("dit"), "difffit", **options)
    assert list(table_alone.edits) == ["label_table"]
