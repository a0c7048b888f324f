"""What fits into a graphics card of 11 GB, by the estimate: counts of bytes on released sizes."""

import json

import pytest

from bench.fits import CARD, METHODS, PAGE, RESULTS, WAYS, cases, memory_of, with_table

WEIGHTS = {"sd-1.5": 2 * 859_520_964, "sdxl": 2 * 2_567_463_684}  # of bf16
OF_ADAPTERS = [case for case in cases() if case["method"] == "adapter"]  # which take the most
TABLE = {
    (row["base"], row["pixels"], row["method"]): row
    for row in json.loads(RESULTS.read_text())["rows"]
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OF_ADAPTERS, ids=lambda case: f"{case['base']}-{case['pixels']}")
def test_a_training_fits(case):
    memory = memory_of(case, "bf16")
    assert memory["weights"] == WEIGHTS[case["base"]]
    assert memory["optimizer"] == 2 * memory["delta"] == 2 * memory["average"]
    parts = ("weights", "delta", "optimizer", "average", "step")
    assert memory["total"] == sum(memory[part] for part in parts) < CARD
    # and not for nothing: activations of the largest layer alone are a few hundred megabytes
    assert memory["step"] > 2e8


def test_the_table_has_all_methods_at_all_sizes_and_all_of_them_fit():
    assert len(TABLE) == len(cases()) == 12
    for row in TABLE.values():
        assert all(0 < row[way]["total"] < CARD for way in WAYS)
        assert row["bf16, offloaded"]["weights"] < 0.05 * row["bf16"]["weights"]
    for case in OF_ADAPTERS:
        rows = [TABLE[case["base"], case["pixels"], method] for method in METHODS]
        assert all(
            row[way]["total"] <= TABLE[case["base"], case["pixels"], "adapter"][way]["total"]
            for row in rows
            for way in WAYS
        )


def test_the_page_has_the_table():
    page = PAGE.read_text()
    assert with_table(page, list(TABLE.values())) == page
