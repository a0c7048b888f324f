"""Tables for the tests: the adapter paper's staircase with its islands, and crossed designs."""

import itertools

import numpy as np

from smidgen.statistics.config import AnovaConfig
from smidgen.statistics.table import make_table

STREAM = ("SA_in", "CA_in", "FFN_in", "Trans_out")  # where adapters may add, in order
FROM = {"SA_in": 0, "SA_out": 1, "CA_in": 1, "CA_out": 2, "FFN_in": 2, "FFN_out": 3, "Trans_out": 3}
CONNECTED = [(source, target) for source, first in FROM.items() for target in STREAM[first:]]
ISLANDS = [
    ("CA_c", "CA_c"),
    ("Res_in", "Res_in"),
    ("Res_in", "Res_out"),
    ("Res_out", "Res_out"),
]
PAIRS = CONNECTED + ISLANDS
EFFECTS = {"CA_out": 0.06, "CA_c": 0.05, "FFN_in": 0.05, "Trans_out": 0.04}  # of the input alone
NOISE = 0.01


def paper(seed=0, num_seeds=3, subjects=()):
    """Columns of the 20 pairs: the metric depends on the input, and not at all on the output."""
    generator = np.random.default_rng(seed)
    rows = []
    for (source, target), number, (place, subject) in itertools.product(
        PAIRS, range(num_seeds), enumerate(subjects or ("one",))
    ):
        value = 0.7 + EFFECTS.get(source, 0) + 0.1 * place + NOISE * generator.standard_normal()
        rows.append((source, target, subject, number, value))
    names = ("input", "output", "subject", "seed", "clip_i")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def crossed(counts, seed=0):
    """Columns of factors a and b and of blocks k, with as many rows in each cell as `counts` says;
    both factors, their interaction and the blocks have effects.
    """
    generator = np.random.default_rng(seed)
    columns = {"a": [], "b": [], "k": [], "y": []}
    for (row, column), count in np.ndenumerate(np.asarray(counts)):
        for number in range(count):
            block = (row + column + number) % 3
            value = row + 0.5 * column + 0.7 * row * column + 2 * block
            columns["a"].append(f"a{row}")
            columns["b"].append(f"b{column}")
            columns["k"].append(f"k{block}")
            columns["y"].append(value + generator.standard_normal())
    return columns


def table_of(columns, **settings):
    """The table of a config's columns."""
    return make_table(columns, AnovaConfig(**settings), "the table")


def paper_table(**settings):
    return table_of(paper(**settings), metric="clip_i", factors="input,output")
