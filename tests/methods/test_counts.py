"""The paper's counts of trained parameters, exactly, over what `build` makes on the meta device."""

import pytest
import torch

from smidgen.hosts.host import find_host
from smidgen.methods import METHODS
from smidgen.models.dit import DiT, preset
from tests.laws.tiny import TinyBase

FOOD_101 = tuple(f"dish {n}" for n in range(101))


@pytest.fixture(scope="module")
def base():
    with torch.device("meta"):
        model = DiT(preset("DiT-XL/2"))
    return TinyBase(
        denoiser=model,
        host=find_host(model),
        class_names=tuple(f"class {n}" for n in range(1000)),
        name="DiT-XL/2",
        fingerprint="",
    )


def _build(base, method, **config):
    entry = METHODS[method]
    delta = entry.build(base, entry.config(**config), FOOD_101, torch.Generator())
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


@pytest.mark.parametrize("num_blocks", [3, 4, 7, 11, 14, 18, 21, 25, 28])
def test_tables_4a_and_4b_gamma_over_layers(base, num_blocks):
    expected = 738_464 + 2_304 * num_blocks
    shallow, deep = f"1-{num_blocks}", f"{29 - num_blocks}-28"
    assert _count(base, "difffit", gammas=("block",), blocks=shallow) == expected
    assert _count(base, "difffit", gammas=("block",), blocks=deep) == expected


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
