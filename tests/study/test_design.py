"""Which cells a design has, what a level is, and where an arm is tuned."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from smidgen.errors import UsageError
from smidgen.study.design import read_design

HEAD = 'output = "runs/x"\nbase = "glyphs"\nlr = 1e-3\n'


@pytest.fixture
def design(tmp_path):
    def read(text):
        path = tmp_path / "study.toml"
        path.write_text(HEAD + text)
        return read_design(path)

    return read


def test_a_full_design_has_every_combination_once(design):
    found = design('[study.factors]\nmethod = ["full", "bitfit"]\nsteps = [1, 2, 3]\n').cells()
    assert [(cell["method"], cell["steps"]) for cell in found] == [
        (method, steps) for method in ("full", "bitfit") for steps in ("1", "2", "3")
    ]


def test_half_of_a_two_level_design_aliases_no_main_effect_with_another_or_with_a_pair(design):
    factors = "".join(f"{name} = {{ no = {{}}, yes = {{ {name} = true }} }}\n" for name in "abcde")
    found = design(f'[study]\ndesign = "half"\n[study.factors]\n{factors}').cells()
    assert len(found) == 2**5 / 2
    signs = np.array([[1 if cell[name] == "yes" else -1 for name in "abcde"] for cell in found])
    mains = signs.T
    pairs = [signs[:, i] * signs[:, j] for i, j in combinations(range(5), 2)]
    columns = np.vstack([np.ones(16, dtype=int), mains, pairs])
    assert (columns @ columns.T == 16 * np.eye(len(columns))).all()


def test_blocks_are_whole_in_a_half_design(design):
    text = '[study]\ndesign = "half"\nblocks = ["data"]\n[study.factors]\ndata = ["x", "y", "z"]\n'
    text += 'flip = [false, true]\nprompt = ["a", "b"]\n'
    found = design(text).cells()
    assert [cell["data"] for cell in found] == ["x", "x", "y", "y", "z", "z"]


def test_listed_cells_are_those_that_are_run(design):
    text = '[study]\ndesign = "listed"\ncells = [{ input = "CA_out", output = "FFN_in" }]\n'
    text += '[study.factors]\ninput = ["CA_out", "SA_in"]\noutput = ["FFN_in", "SA_in"]\n'
    assert design(text).cells() == [{"input": "CA_out", "output": "FFN_in"}]


def test_a_listed_cell_is_run_at_every_level_of_a_block_that_it_leaves_out(design):
    text = '[study]\nblocks = ["data"]\ndesign = "listed"\n'
    text += 'cells = [{ lr = 0.5 }, { lr = 0.25, data = "y" }]\n'
    text += '[study.factors]\nlr = [0.25, 0.5]\ndata = ["x", "y"]\n'
    assert [tuple(cell.values()) for cell in design(text).cells()] == [
        ("0.5", "x"),
        ("0.5", "y"),
        ("0.25", "y"),
    ]


@pytest.mark.parametrize(
    ("cell", "said"),
    [("{ data = 'x' }", "expected a level of each"), ("{ lr = 0.5, dta = 'x' }", '"data"')],
)
def test_a_listed_cell_must_name_what_is_compared_and_nothing_unknown(design, cell, said):
    text = f'[study]\nblocks = ["data"]\ndesign = "listed"\ncells = [{cell}]\n'
    with pytest.raises(UsageError, match=said):
        design(text + '[study.factors]\nlr = [0.25, 0.5]\ndata = ["x", "y"]\n')


def test_a_level_stands_above_what_all_share(design):
    text = "[study.factors.arm]\nslow = { lr = 1e-5 }\nfast = { method = 'lora', rank = 4 }\n"
    found = design(text)
    slow, fast = (found.settings({"arm": name}) for name in ("slow", "fast"))
    assert (slow["lr"], fast["lr"], fast["rank"]) == (1e-5, 1e-3, 4)


def test_factors_may_each_give_a_part_of_one_list(design):
    text = "gammas = []\n[study.factors]\n"
    for gamma in ("block", "qkv"):
        text += f"{gamma} = {{ no = {{}}, yes = {{ 'gammas+' = ['{gamma}'] }} }}\n"
    found = design(text)
    assert [found.settings(cell)["gammas"] for cell in found.cells()] == [
        [],
        ["qkv"],
        ["block"],
        ["block", "qkv"],
    ]
    assert found.fixed["gammas"] == []


def test_a_level_of_a_combination_has_the_options_of_each_method(design):
    text = "lora.rank = 2\n[study.factors.arm]\n"
    text += "one = { method = 'lora+bitfit', lora = { rank = 8 } }\n"
    text += "two = { method = 'lora+bitfit', lora = { use-x = 4 } }\n"
    found = design(text)
    one, two = (found.settings({"arm": name}) for name in ("one", "two"))
    assert (one["lora"], one["lora.rank"]) == ({"rank": 2}, 8)  # and the last of a name counts
    assert two["lora.use_x"] == 4


def test_an_arm_is_tuned_at_one_level_of_the_blocks_unless_it_has_a_value_of_its_own(design):
    text = '[study]\nblocks = ["data"]\n[study.tune]\nvalues = [1e-3, 1e-2]\nat = { data = "y" }\n'
    text += '[study.factors]\ndata = ["x", "y"]\n[study.factors.arm]\n'
    text += "own = { lr = 1e-5 }\ntuned = { method = 'bitfit' }\n"
    found = design(text)
    assert found.tuned_at({"data": "x", "arm": "tuned"}) == {"arm": "tuned", "data": "y"}
    assert [found.is_tuned({"data": "x", "arm": arm}) for arm in ("own", "tuned")] == [False, True]
