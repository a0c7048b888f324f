"""The paper's counts of trained parameters, exactly, over what `build` makes on the meta device."""

import pytest
import torch

from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.dit import DiT, preset
from tests.tiny.bases import base_of

FOOD_101 = tuple(f"dish {n}" for n in range(101))


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        model = DiT(preset("DiT-XL/2"))
    return base_of(model, [f"class {n}" for n in range(1000)])


def _build(base, method, **config):
    delta = build_delta(method, base, configure(method, config), FOOD_101, torch.Generator())
    assert all(parameter.is_meta for parameter in delta.parameters())
    return delta


def _count(base, method, **config):
    return _build(base, method, **config).num_parameters()


def test_table_1_full(base):
    assert _count(base, "full") == 673_799_072
    with torch.device("meta"):
        fresh = DiT(preset("DiT-XL/2", num_classes=101))
    trained = sum(p.numel() for name, p in fresh.named_parameters() if name != "pos_embed")
    assert _count(base, "full") == trained


def test_table_1_bitfit(base):
    assert _count(base, "bitfit") == 607_136


def test_bitfit_trains_145_biases(base):
    delta = _build(base, "bitfit")
    biases = {n: p.shape for n, p in base.denoiser.named_parameters() if n.endswith(".bias")}
    assert len(biases) == 145
    assert set(delta.edits) == set(biases) | {"label_table"}
    for name, shape in biases.items():
        assert delta.edits[name].offset.shape == shape


def test_table_1_difffit(base):
    assert _count(base, "difffit") == 835_264


def test_table_1_difffit_as_printed_without_the_final_gamma(base):
    assert _count(base, "difffit", gammas=("block", "qkv", "proj")) == 835_232


def test_difffit_with_the_label_table_frozen_as_from_low_to_high_resolution(base):
    delta = build_delta(
        "difffit",
        base,
        configure("difffit"),
        base.class_names,
        torch.Generator(),
        train_labels=False,
    )
    assert delta.num_parameters() == 717_760
    assert "label_table" not in delta.edits
    assert delta.provenance.classes == base.class_names


@pytest.mark.parametrize("options", [{}, {"read": "stream"}, {"form": "sequential"}])
def test_table_1_adaptformer(base, options):
    assert _count(base, "adaptformer", **options) == 4_280_320


def test_table_1_vpt_deep(base):
    delta = _build(base, "vpt")
    assert delta.num_parameters() == 2_816_672
    prompts = {f"blocks.{n}.prompt" for n in range(5)}
    assert set(delta.edits) == prompts | {"final_layer.copy", "label_table"}


@pytest.mark.parametrize(("rank", "count"), [(8, 1_149_696), (16, 2_181_888)])
def test_table_1_lora(base, rank, count):
    assert _count(base, "lora", rank=rank) == count
    assert _count(base, "lora", rank=rank, targets=("qkv",)) == count


def test_without_options_every_method_is_its_row_of_table_1(base):
    rows = {
        "full": 673_799_072,
        "bitfit": 607_136,
        "difffit": 835_264,
        "adaptformer": 4_280_320,
        "vpt": 2_816_672,
        "lora": 1_149_696,
    }
    assert {method: _count(base, method) for method in rows} == rows


TABLE_4A = {  # from deep to shallow, as printed -> blocks and their number
    "28->25": ("28-25", 4),
    "28->22": ("28-22", 7),
    "28->18": ("28-18", 11),
    "28->14": ("28-15", 14),  # the count is that of 14 blocks
    "28->11": ("28-11", 18),
    "28->8": ("28-8", 21),
    "28->4": ("28-4", 25),
    "28->1": ("28-1", 28),
}
TABLE_4B = {"1->3": 3, "1->7": 7, "1->11": 11, "1->14": 14, "1->18": 18, "1->21": 21, "1->25": 25,
            "1->28": 28}  # fmt: skip


@pytest.mark.parametrize("entry", TABLE_4A)
def test_table_4a_gamma_from_deep_to_shallow(base, entry):
    blocks, num_blocks = TABLE_4A[entry]
    delta = _build(base, "difffit", gammas=("block",), blocks=blocks)
    assert delta.num_parameters() == 738_464 + 2_304 * num_blocks
    assert "blocks.27.attn.gamma" in delta.edits


@pytest.mark.parametrize("entry", TABLE_4B)
def test_table_4b_gamma_from_shallow_to_deep(base, entry):
    delta = _build(base, "difffit", gammas=("block",), blocks=f"1-{TABLE_4B[entry]}")
    assert delta.num_parameters() == 738_464 + 2_304 * TABLE_4B[entry]
    assert "blocks.0.attn.gamma" in delta.edits


def test_table_4c_row_1_none(base):
    assert _count(base, "difffit", gammas=(), layer_norm=False) == 607_136


def test_table_4c_row_2_blocks(base):
    assert _count(base, "difffit", gammas=("block",), blocks="all") == 802_976


def test_table_4c_rows_3_to_6_add_one_location_each(base):
    added = {"patch": 1152, "time": 1152, "qkv": 28 * 3456, "final": 32}
    for location, size in added.items():
        count = _count(base, "difffit", gammas=("block", location), blocks="all")
        assert count == 802_976 + size, location


def test_table_4c_row_8_the_final_setting(base):
    assert (
        _count(base, "difffit", gammas=("block", "qkv", "proj", "final"), blocks="1-14") == 835_264
    )
