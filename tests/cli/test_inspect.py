"""`smidgen inspect` on networks of diffusers: counts and the table, without weights."""

import pytest

from smidgen.cli.inspect import table
from tests.cli.test_misuse import assert_refused
from tests.tiny.hosts import TINY_HOSTS
from tests.tiny.networks import network

ADAPTER = ("--method", "adapter", "--input-position", "CA_out", "--output-position", "FFN_in")


def test_the_papers_adapter_on_stable_diffusion(smidgen):
    document = smidgen("inspect", "sd-1.4", *ADAPTER, "--width", 256, "--json").document
    assert document["trainable"] == 6_406_336
    assert sum(row["count"] for row in document["tensors"]) == 6_406_336
    assert document["num_classes"] is None


@pytest.mark.parametrize("count", [0, 10**12])
def test_a_number_of_classes_that_no_table_has_is_refused(smidgen, count):
    outcome = smidgen("inspect", "DiT-S/8", "--method", "difffit", "--num-classes", count)
    assert_refused(outcome, f"num_classes is {count}", codes=(2,))


def test_a_weights_file_that_is_not_there_is_no_architecture(smidgen):
    missing = "DiT-XL-2-256x256.pt"
    for verb in (("inspect", missing), ("sample", "--base", missing, "--output", "out")):
        assert_refused(smidgen(*verb), f'no base "{missing}"', codes=(2,))


def test_the_table_and_the_facts_are_printed(smidgen, tmp_path):
    network("unet").save_config(tmp_path / "unet")
    printed = smidgen("inspect", tmp_path / "unet", "--method", "bitfit").out.splitlines()
    assert printed[0].split() == ["site", "edit", "shape", "times", "count"]
    assert "conv_in.out  " in printed[1]
    counts = [int(line.split()[-1].replace(",", "")) for line in printed[1 : printed.index("")]]
    total = next(line for line in printed if line.startswith("trainable: "))
    assert sum(counts) == int(total.removeprefix("trainable: ").replace(",", ""))


def test_rows_that_differ_in_numbers_only_are_one_line():
    rows = [
        {
            "site": f"blocks.{n}.mlp.in -> blocks.{n}.mlp.out",
            "edit": "bypass",
            "shape": [2, 3],
            "count": 6,
        }
        for n in range(12)
    ]
    rows.append({"site": "norm2.out", "edit": "shift", "shape": [5], "count": 5})
    assert [line.split() for line in table(rows)[1:]] == [
        ["blocks.*.mlp.in", "->", "blocks.*.mlp.out", "bypass", "2", "x", "3", "12", "72"],
        ["norm2.out", "shift", "5", "1", "5"],
    ]


def test_parameters_without_a_site_are_named(smidgen, tmp_path):
    model = TINY_HOSTS["sana"].make(3)
    model.save_config(tmp_path / "sana")
    arguments = ("inspect", tmp_path / "sana", "--method", "bitfit")
    tables = {name: p for name, p in model.named_parameters() if name.endswith("scale_shift_table")}
    document = smidgen(*arguments, "--json").document
    assert document["untouched"] == {name: p.numel() for name, p in tables.items()}
    printed = smidgen(*arguments).out
    assert all(f"  {name}  " in printed for name in tables)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sd-1.4", "--num-classes", "5"), ("no label table",)),
        (("sd-9",), ("sd-9",)),
        (("sd-1.4", "--method", "vpt", "--depth", "shallow"), ("shallow",)),
    ],
)
def test_what_cannot_be_is_refused(smidgen, arguments, words):
    assert_refused(smidgen("inspect", *arguments), *words, codes=(1, 2))
