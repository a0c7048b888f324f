"""The analysis as a document: what it has, and what it says of designs that cannot answer."""

import json

import numpy as np
import pytest

from smidgen.errors import SmidgenError, UsageError
from smidgen.statistics.anova import anova
from smidgen.statistics.config import AnovaConfig

from .designs import CONNECTED, EFFECTS, NOISE, crossed, paper

PAPER = AnovaConfig(metric="clip_i", factors="input,output")


def mentions(notes, *words):
    return any(all(word in note for word in words) for note in notes)


def test_of_the_papers_pairs_the_input_matters_and_the_output_does_not():
    found = anova(paper(), PAPER)
    json.dumps(found, allow_nan=False)
    terms, one_way = found["terms"], found["one_way"]
    assert (terms["input"]["df"], terms["output"]["df"]) == (6, 3)
    assert terms["input"]["df_residual"] == terms["output"]["df_residual"] == 48 - 10
    assert terms["input"]["p"] < 1e-6
    assert terms["output"]["p"] > 0.05
    assert terms["output"]["permutation_p"] > 0.05
    assert terms["output"]["omega_squared_interval"][0] == 0
    assert (one_way["input"]["df"], one_way["input"]["df_residual"]) == (9, 50)
    assert (one_way["output"]["df"], one_way["output"]["df_residual"]) == (6, 53)
    assert found["connected"] == {"rows": 48, "cells": 16}
    assert found["aliased"] == [
        "input Res_in, Res_out with output Res_in, Res_out",
        "input CA_c with output CA_c",
    ]
    contrast = found["contrasts"][0]
    truth = EFFECTS["CA_c"] - np.mean([EFFECTS.get(source, 0) for source, _ in CONNECTED])
    assert contrast["cell"] == "CA_c:CA_c"
    error = NOISE * np.sqrt(1 / 3 + 1 / 48)  # of three rows less the mean of 48
    assert abs(contrast["difference"] - truth) < 3 * error
    assert mentions(found["notes"], "16 cells", "48 of 60 rows")


def test_an_interaction_is_tested_where_it_is_asked_for_and_gives_the_error():
    settings = {"metric": "clip_i", "factors": "input,output", "interaction": "input:output"}
    found = anova(paper(), AnovaConfig(**settings))
    assert found["terms"]["input:output"]["df"] == 6
    assert {term["df_residual"] for term in found["terms"].values()} == {48 - 16}
    assert found["terms"]["input:output"]["p"] > 0.05


def test_subjects_are_blocks_of_every_model():
    columns = paper(subjects=("owl", "dog"))
    blocked = AnovaConfig(metric="clip_i", factors="input,output", blocks="subject")
    found = anova(columns, blocked)
    assert found["terms"]["input"]["df_residual"] == 96 - 10 - 1
    assert found["one_way"]["input"]["df_residual"] == 120 - 10 - 1
    # the subjects are 0.1 apart, ten times the noise
    assert found["terms"]["input"]["mean_square_residual"] < 2 * NOISE**2


def test_of_twenty_cells_with_one_value_it_says_what_can_be_tested():
    found = anova(paper(num_seeds=1), PAPER)
    assert (found["one_way"]["input"]["df"], found["one_way"]["input"]["df_residual"]) == (9, 10)
    assert (found["terms"]["input"]["df"], found["terms"]["input"]["df_residual"]) == (6, 6)
    assert (found["terms"]["output"]["df"], found["terms"]["output"]["df_residual"]) == (3, 6)
    assert mentions(found["notes"], "one row", "no interaction can be tested", "two seeds")
    asked = AnovaConfig(metric="clip_i", factors="input,output", interaction="input:output")
    with pytest.raises(UsageError, match=r"input:output needs two rows .*SA_in:SA_in has 1"):
        anova(paper(num_seeds=1), asked)


def test_crossed_designs_have_neither_islands_nor_their_notes():
    found = anova(crossed([[2, 2], [2, 2]]), AnovaConfig(metric="y", factors="a,b"))
    assert found["aliased"] == found["contrasts"] == []
    assert mentions(found["notes"], "additive", "--interaction a:b")
    assert not mentions(found["notes"], "crossed evenly")
    (pair,) = found["tukey"]["a"]
    assert pair["levels"] == ["a0", "a1"]
    assert {one["level"]: one["rows"] for one in found["levels"]["b"]} == {"b0": 4, "b1": 4}


def test_a_factor_that_no_connected_cell_varies_has_a_note_and_no_term():
    columns = {"a": list("ppqq"), "b": list("stuv"), "y": [1.0, 2.0, 3.0, 5.0]}
    found = anova(columns, AnovaConfig(metric="y", factors="a,b"))
    assert found["terms"] == {}
    assert list(found["one_way"]) == ["a"]
    assert mentions(found["notes"], "a is always p in the connected cells")
    assert mentions(found["notes"], "b cannot be tested", "as many parameters")


def test_two_factors_that_are_one_have_no_terms_and_are_named():
    columns = {"a": list("ppqr"), "same": list("sstu"), "y": [1.0, 2.0, 5.0, 7.0]}
    found = anova(columns, AnovaConfig(metric="y", factors="a,same"))
    assert found["terms"] == {}
    assert found["one_way"]["a"]["F"] == found["one_way"]["same"]["F"]
    assert found["aliased"] == ["a q with same t", "a r with same u"]
    assert not mentions(found["notes"], "cannot be tested")


def test_a_table_that_can_test_nothing_is_an_error_with_the_reason():
    columns = {"a": list("pqr"), "y": [1.0, 2.0, 4.0]}
    with pytest.raises(SmidgenError, match="a cannot be tested: 3 rows and as many parameters"):
        anova(columns, AnovaConfig(metric="y", factors="a"))


def test_the_same_table_gives_the_same_document():
    columns, config = crossed([[2, 2], [3, 2]]), AnovaConfig(metric="y", factors="a", blocks="k")
    assert anova(columns, config) == anova(columns, config)


def indicators(columns, *names):
    """A column of 1 and one for each level of the named columns."""
    found = [np.ones(len(columns["y"]))]
    for name in names:
        found += [[float(one == level) for one in columns[name]] for level in set(columns[name])]
    return np.array(found).T


@pytest.mark.parametrize(("interaction", "more"), [(None, ()), ("a:b", ("ab",))])
def test_the_residuals_are_those_of_the_model_whose_terms_are_told(interaction, more):
    columns = crossed([[2, 3], [3, 2]])
    columns["ab"] = [f"{a} {b}" for a, b in zip(columns["a"], columns["b"], strict=True)]
    config = AnovaConfig(metric="y", factors="a,b", blocks="k", interaction=interaction)
    found = anova(columns, config)
    told = found["assumptions"]["residuals"]
    design, values = indicators(columns, "a", "b", "k", *more), np.array(columns["y"])
    fitted = design @ np.linalg.lstsq(design, values)[0]
    np.testing.assert_allclose(told["fitted"], fitted, atol=1e-9)
    np.testing.assert_allclose(told["residuals"], values - fitted, atol=1e-9)
    effect = found["terms"]["a"]
    squares = float(np.sum(np.square(told["residuals"])))
    assert squares == pytest.approx(effect["mean_square_residual"] * effect["df_residual"])


def test_of_islands_only_the_residuals_of_connected_rows_are_told():
    told = anova(paper(), PAPER)["assumptions"]["residuals"]
    assert len(told["fitted"]) == len(told["residuals"]) == 48
