"""Islands compared with the rest, against t tests written out."""

import numpy as np
import pytest
from scipy import stats

from smidgen.errors import UsageError
from smidgen.statistics.comparisons import holm
from smidgen.statistics.contrasts import MEAN, check_cells, island_contrasts
from smidgen.statistics.islands import parts

from .designs import paper, paper_table, table_of


def cell(table, name):
    cells = table.cells()
    return table.values[cells.codes == cells.names.index(name)]


def within(table):
    """Variance within cells, and its degrees of freedom."""
    cells = table.cells()
    squares = sum(
        np.sum((cell(table, name) - cell(table, name).mean()) ** 2) for name in cells.names
    )
    df = len(table) - len(cells.names)
    return squares / df, df


def test_each_cell_of_an_island_is_compared_with_the_mean_of_the_connected_cells():
    table = paper_table()
    first, *islands = parts(table)
    found = island_contrasts(table, islands, ())
    assert [one["cell"] for one in found] == [
        *("CA_c:CA_c", "Res_in:Res_in", "Res_in:Res_out", "Res_out:Res_out")
    ]
    connected = table.take(first)
    variance, df = within(table)
    mean = np.mean([cell(table, name).mean() for name in connected.cells().names])
    for one in found:
        difference = cell(table, one["cell"]).mean() - mean
        error = np.sqrt(variance * (1 / 3 + 1 / (16 * 3)))
        assert one["against"] == MEAN
        assert (one["difference"], one["t"]) == pytest.approx((difference, difference / error))
        assert one["df"] == df == 40
        assert one["p"] == pytest.approx(2 * stats.t.sf(abs(difference / error), df))
        reach = stats.t.ppf(0.975, df) * error
        assert one["interval"] == pytest.approx([difference - reach, difference + reach])
    assert [one["p_holm"] for one in found] == pytest.approx(holm([one["p"] for one in found]))


def test_or_with_the_cells_that_are_named():
    table = paper_table()
    islands = parts(table)[1:]
    found = island_contrasts(table, islands, ["CA_out:FFN_in", "CA_c:CA_c"])
    pairs = [(one["cell"], one["against"]) for one in found]
    assert ("CA_c:CA_c", "CA_out:FFN_in") in pairs
    assert ("CA_c:CA_c", "CA_c:CA_c") not in pairs
    assert len(pairs) == 7
    one = found[pairs.index(("Res_in:Res_out", "CA_c:CA_c"))]
    difference = cell(table, "Res_in:Res_out").mean() - cell(table, "CA_c:CA_c").mean()
    t = difference / np.sqrt(within(table)[0] * 2 / 3)
    assert (one["difference"], one["t"]) == pytest.approx((difference, t))
    with pytest.raises(UsageError, match=r'no cell "CA_c" .*did you mean "CA_c:CA_c"'):
        check_cells(table, ["CA_c"])


def test_subjects_are_taken_off_as_blocks():
    """The same difference between subjects in all cells changes nothing but a degree of freedom."""
    columns = paper(subjects=("owl", "dog"))
    settings = {"metric": "clip_i", "factors": "input,output", "blocks": "subject"}
    table = table_of(columns, **settings)
    more = [
        y + 5.0 * (who == "dog")
        for y, who in zip(columns["clip_i"], columns["subject"], strict=True)
    ]
    shifted = table_of(columns | {"clip_i": more}, **settings)
    one, other = (island_contrasts(each, parts(each)[1:], ()) for each in (table, shifted))
    assert one[0]["df"] == 120 - 20 - 1
    for a, b in zip(one, other, strict=True):
        assert (a["difference"], a["t"]) == pytest.approx((b["difference"], b["t"]), rel=1e-9)


def test_with_one_row_a_cell_the_error_is_that_of_the_additive_model():
    table = paper_table(num_seeds=1)
    found = island_contrasts(table, parts(table)[1:], ())
    assert {one["df"] for one in found} == {20 - 14}


def test_without_any_error_there_are_none():
    columns = {"a": list("pq"), "b": list("st"), "y": [1.0, 2.0]}
    table = table_of(columns, metric="y", factors="a,b")
    assert island_contrasts(table, parts(table)[1:], ()) == []
