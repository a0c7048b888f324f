"""The papers' counts on Stable Diffusion's UNets, exactly, by `inspect` and without weights.

m is the width of the adapters; the formulas are those of each position over all blocks of SD 1.4.
"""

import functools
from pathlib import Path

import pytest
import torch

import smidgen
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.architectures import meta_network
from smidgen.models.base import Base
from tests.tiny.bases import base_of

PAGE = Path(__file__).parents[1] / "docs" / "unet.md"
SD_14 = 859_520_964
STREAM = ["SA_in", "SA_out", "CA_in", "CA_out", "FFN_in", "FFN_out", "Trans_out"]
PAIRS = [
    (read, write)
    for number, read in enumerate(STREAM)
    for write in STREAM[number:]
    if write in ("SA_in", "CA_in", "FFN_in", "Trans_out")
]


@functools.cache
def _base() -> Base:
    return base_of(meta_network("sd-1.4"))


def _trainable(method: str, **values) -> int:
    delta = build_delta(method, _base(), configure(method, values), (), torch.Generator())
    assert all(parameter.is_meta for parameter in delta.parameters())
    return delta.num_parameters()


def _adapter(read: str, write: str, width: int) -> int:
    return _trainable("adapter", input_position=read, output_position=write, width=width)


@pytest.mark.parametrize("name", ["sd-1.4", "sd-1.5"])
def test_the_unet_of_stable_diffusion_1(name):
    found = smidgen.inspect(name, method="bitfit")
    assert found["total"] == SD_14
    assert found["untouched"] == {}


def test_full_trains_all_of_it():
    assert _trainable("full") == SD_14


def test_one_layer_after_the_cross_attention_has_the_count_of_a_summary_of_the_paper():
    places = {"input_position": "CA_out", "output_position": "FFN_in"}
    assert _trainable("adapter", form="linear", **places) == 12_402_880


def test_sixteen_pairs_of_the_transformer_block_have_one_formula():
    assert len(PAIRS) == 16
    for read, write in PAIRS:
        assert _adapter(read, write, 60) == 24_976 * 60 + 12_480, (read, write)


@pytest.mark.parametrize(
    ("read", "write", "slope", "constant"),
    [
        ("CA_out", "FFN_in", 24_976, 12_480),
        ("CA_c", "CA_c", 24_592, 12_288),
        ("Res_in", "Res_in", 535_702, 89_280),
        ("Res_in", "Res_out", 449_302, 79_680),
        ("Res_out", "Res_out", 362_902, 60_480),
    ],
)
@pytest.mark.parametrize("width", [1, 60])
def test_the_formula_of_a_position(read, write, slope, constant, width):
    assert _adapter(read, write, width) == slope * width + constant


def test_width_256_after_the_cross_attention_is_0_745_per_cent():
    found = smidgen.inspect(
        "sd-1.4",
        method="adapter",
        method_config={"input_position": "CA_out", "output_position": "FFN_in", "width": 256},
    )
    assert found["trainable"] == 6_406_336
    assert f"{found['share']:.3%}" == "0.745%"
    assert found["delta_bytes"] == 4 * 6_406_336


@pytest.mark.parametrize("name", ["sd-1.4", "sdxl"])
def test_difffit_trains_biases_norm_weights_and_gammas_of_every_sub_layer(name):
    shapes = {n: p.shape for n, p in meta_network(name).named_parameters()}
    expected = {f"{n}.offset": shape for n, shape in shapes.items() if n.split(".")[-1] == "bias"}
    for parameter, shape in shapes.items():
        if parameter.endswith(".weight") and len(shape) == 1:
            expected[f"{parameter}.gain"] = shape
        for last in (".to_out.0.weight", ".net.2.weight", ".conv2.weight"):
            if parameter.endswith(last):  # of the attentions, feed-forwards, residual blocks
                part = parameter.removesuffix(".weight" if "conv2" in last else last)
                expected[f"{part}.gamma.gain"] = shape[:1]
    found = smidgen.inspect(name, method="difffit")
    rows = {row["name"]: tuple(row["shape"]) for row in found["tensors"]}
    assert rows == {n: tuple(shape) for n, shape in expected.items()}
    assert sum(row["count"] for row in found["tensors"]) == found["trainable"]
    assert f"{found['trainable']:,} in {len(rows)}" in PAGE.read_text(encoding="utf-8")


def test_rows_of_the_table_say_where_an_edit_acts():
    found = smidgen.inspect("sd-1.4", method="adapter", method_config={"width": 8})
    first = found["tensors"][0]
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    sites = f"{block}.attn2.out -> {block}.norm3.in -> {block}.out"
    assert (first["site"], first["edit"], first["count"]) == (sites, "bypass", 8 * 320)
