"""What a report says of costs and bytes, and the line around the cells of a design."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from smidgen.study.analysis import analysis_of
from smidgen.study.design import read_design
from smidgen.study.figures import cells, cost, outline, spent
from smidgen.study.tables import bytes_table, cost_table, main_table

RECIPE = """
output = "runs/x"
base = "glyphs"
[study]
seeds = [0, 1]
blocks = ["data"]
[study.factors]
data = ["greek", "hebrew", "thai"]
method = ["difffit", "full"]
"""


@pytest.fixture
def study(tmp_path):
    """A design and an analysis of made-up numbers."""
    (tmp_path / "study.toml").write_text(RECIPE)
    design = read_design(tmp_path / "study.toml")
    return design, analysis_of(design, rows_of(design))


def rows_of(design):
    return [
        {
            **cell,
            "seed": seed,
            "state": "finished",
            "fd": 2.0 + seed + (cell["method"] == "full"),
            "trainable": 10 if cell["method"] == "difffit" else 1000,
            "total": 1000,
            "delta_bytes": 100 if cell["method"] == "difffit" else 4000,
            "seconds": 50.0,
        }
        for cell in design.cells()
        for seed in (0, 1)
    ]


def timed(analysis, **more):
    analysis["time"] = {"reference": "full", "rounds": 5}
    for arm, step in zip(analysis["arms"], (6.0, 10.0), strict=True):
        arm["cost"] = {
            "step_ms": [step, step - 1, step + 1],
            "ratio": [step / 10, 0.5, 1.0],
            "step_gflops": step,
            "gflops": 100 * step,
            "gflops_before": 0.0,
            "gflops_of_base": None,
            **more,
        }
    return analysis


def test_k_deltas_are_counted_against_k_copies_of_the_network(study):
    _, analysis = study
    table = bytes_table(analysis, ["greek", "hebrew", "thai"])
    assert table["rows"] == [
        ["difffit", "300", "12,000", "2.50%"],
        ["full", "12,000", "12,000", "100.00%"],
    ]
    assert bytes_table(analysis, ["all"])["rows"] == []


def test_few_pairs_are_said_to_be_few_in_place_of_no_difference_each(study):
    design, analysis = study
    assert analysis["says"][0].startswith("difffit is better than full in fd")  # six pairs
    of_one_set = [row for row in rows_of(design) if row["data"] == "greek"]
    said = analysis_of(design, of_one_set)["says"]
    assert (
        "2 pairs have no p below 0.5, and by Holm's correction one below 0.05 is needed" in said[0]
    )
    assert not any("is shown between" in line for line in said)


def test_no_name_in_a_figure_lies_on_another(study):
    _, analysis = study
    _, large = analysis["arms"]  # of 10 and 1,000 parameters
    analysis["arms"].append({**large, "trainable": 990, "mean": large["mean"] + 0.001})
    _, figure = cost(analysis)
    boxes = [name.get_window_extent() for name in figure.axes[0].texts]
    assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))


def test_the_column_of_time_is_the_step_where_it_was_timed(study):
    design, analysis = study
    blocks = ["greek", "hebrew", "thai"]
    untimed = main_table(design, analysis, blocks)
    assert untimed["rows"][0][untimed["head"].index("training, s")] == "50"
    table = main_table(design, timed(analysis), blocks)
    assert "training, s" not in table["head"]
    found = [row[table["head"].index("of full's")] for row in table["rows"]]
    assert found == ["0.6", "1"]


def test_a_cost_counts_what_came_before_where_that_is_known(study):
    _, analysis = study
    assert cost_table(analysis)["rows"] == []
    plain = cost_table(timed(analysis))
    assert plain["head"][-2:] == ["begun from, GFLOP", "fd"]
    assert spent(analysis) is None
    table = cost_table(timed(analysis, gflops_of_base=5000.0, gflops_before=50.0))
    assert [row[-2] for row in table["rows"]] == ["5,650", "6,050"]
    assert spent(analysis) is not None


def lines_of(inside) -> set[tuple[tuple[float, float], ...]]:
    axes = Figure().subplots()
    outline(axes, np.array(inside))
    drawn = (line.get_xydata() for line in axes.get_lines())
    return {tuple(sorted((float(x), float(y)) for x, y in points)) for points in drawn}


def test_a_line_goes_around_the_cells_of_the_design_and_nowhere_else():
    around = {  # of the lower left triangle of 2 x 2 cells, whose middles are whole numbers
        *(((-0.5, y - 0.5), (-0.5, y + 0.5)) for y in (0, 1)),
        *(((x - 0.5, 1.5), (x + 0.5, 1.5)) for x in (0, 1)),
        ((-0.5, -0.5), (0.5, -0.5)),
        ((0.5, -0.5), (0.5, 0.5)),
        ((0.5, 0.5), (1.5, 0.5)),
        ((1.5, 0.5), (1.5, 1.5)),
    }
    assert lines_of([[True, False], [True, True]]) == around
    assert lines_of([[True, True], [True, True]]) == set()


def test_the_staircase_is_that_of_the_listed_cells(tmp_path):
    text = 'output = "runs/x"\nbase = "glyphs"\n[study]\ndesign = "listed"\n'
    text += "cells = [{ lr = 0.5, steps = 1 }, { lr = 0.25, steps = 1 }, { lr = 0.5, steps = 2 }]\n"
    (tmp_path / "study.toml").write_text(
        text + "[study.factors]\nlr = [0.5, 0.25]\nsteps = [1, 2]\n"
    )
    design = read_design(tmp_path / "study.toml")
    rows = [{**cell, "state": "finished", "fd": 1.0} for cell in design.cells()]
    drawn = cells(design, rows)
    assert drawn is not None
    lines = drawn[1].axes[0].get_lines()
    assert len(lines) == len(lines_of([[True, True], [True, False]])) == 8
