"""Every row of the table of metrics is whole: what it names exists, and takes what it is given."""

import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from smidgen.evaluation.table import METRICS, needing

GIVEN = {
    "gaussian": 4,
    "features": 3,
    "features-to-gaussian": 3,
    "directions": 2,
    "probabilities": 1,
    "texts": 1,
    "classes": 5,
    "samples": 1,
    "others": 1,
}
PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


@pytest.mark.parametrize("name", METRICS)
def test_a_row_names_a_function_that_takes_what_it_needs_and_its_settings(name):
    row = METRICS[name]
    function = pkgutil.resolve_name(row.function)
    inspect.signature(function).bind(*range(GIVEN[row.needs]), **row.settings)
    assert row.needs != "probabilities" or row.head
    assert row.unbiased is None or row.unbiased in METRICS
    assert f"{0.25:{row.form}}"


def test_rows_of_a_group_are_of_one_call():
    of_group = {}
    for row in METRICS.values():
        if row.group is not None:
            call = (row.function, row.needs, row.settings, row.min_images, row.features)
            assert of_group.setdefault(row.group, call) == call
    assert set(of_group) == {"neighbours"}
    assert not set(of_group) & set(METRICS)


def test_metrics_are_found_by_what_they_need():
    assert needing(["clip_i", "kid", "cmmd"], "features") == ["kid", "cmmd"]
    assert needing(["fd"], "texts") == []


@pytest.mark.parametrize("name", METRICS)
def test_the_page_of_metrics_lists_every_row(name):
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
    assert ("higher" if METRICS[name].higher_is_better else "lower") in line.split("|")[3]


def test_the_names_are_known_without_torch():
    code = "import sys, smidgen.cli.evaluate; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
