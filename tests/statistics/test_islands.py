"""Which cells are connected."""

import itertools

from smidgen.statistics.islands import parts

from .designs import CONNECTED, ISLANDS, PAIRS, paper_table, table_of


def cells_of(table, rows):
    part = table.take(rows)
    return set(part.cells().names)


def test_the_papers_pairs_are_a_staircase_and_two_islands():
    table = paper_table()
    found = [cells_of(table, rows) for rows in parts(table)]
    names = [":".join(pair) for pair in (*CONNECTED, *ISLANDS)]
    assert found == [set(names[:16]), set(names[17:]), {names[16]}]


def test_a_third_factor_that_is_crossed_with_all_hides_no_island():
    rows = [(a, b, form) for (a, b), form in itertools.product(PAIRS, ("relu", "silu"))]
    columns = {
        name: [row[place] for row in rows] for place, name in enumerate(("input", "output", "form"))
    }
    numbers = {"y": list(range(len(rows)))}
    table = table_of(columns | numbers, metric="y", factors="form,input,output")
    assert [len(rows) for rows in parts(table)] == [32, 6, 2]


def test_one_factor_has_no_islands_and_two_that_are_one_have_nothing_else():
    columns = {"a": list("ppqqr"), "same": list("ssttu"), "y": [1.0, 2.0, 3.0, 4.0, 5.0]}
    alone = table_of(columns, metric="y", factors="a")
    assert [list(rows) for rows in parts(alone)] == [[0, 1, 2, 3, 4]]
    both = table_of(columns, metric="y", factors="a,same")
    assert [list(rows) for rows in parts(both)] == [[0, 1], [2, 3], [4]]
