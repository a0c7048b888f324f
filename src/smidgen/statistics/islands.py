"""Which cells of a design are connected: what an additive model can compare.

Two factors are a bipartite graph of their levels, with an edge for each cell that there is. Effects
of both can be told apart only among cells of one component (Weeks and Williams 1964).
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from smidgen.statistics.table import Levels, Table


def parts(table: Table) -> list[np.ndarray]:
    """The rows of the largest connected part, then of the largest of what remains, and so on: the
    first part is what is analysed, the others are islands.
    """
    rest, found = np.arange(len(table)), []
    while len(rest):
        connected = _connected(table.take(rest))
        found.append(rest[connected])
        rest = rest[~connected]
    return found


def _connected(table: Table) -> np.ndarray:
    """(N,): whether a row is of the part with most cells, among which every pair of factors is one
    component; of equal ones that which appears first.
    """
    kept = np.arange(len(table))
    pairs = list(combinations(table.factors, 2))
    while pairs:  # what one pair leaves out may take apart another
        part = table.take(kept)
        cells = part.cells().codes
        for first, second in pairs:
            labels = components(part.factors[first], part.factors[second])
            sizes = [len(np.unique(cells[labels == one])) for one in range(max(labels) + 1)]
            if len(sizes) > 1:
                kept = kept[labels == np.argmax(sizes)]
                break
        else:
            break
    return np.isin(np.arange(len(table)), kept)


def components(first: Levels, second: Levels) -> np.ndarray:
    """(N,): the number of the component of each row, in the order in which they appear."""
    nodes = len(first.names) + len(second.names)
    edges = (np.ones(len(first.codes)), (first.codes, len(first.names) + second.codes))
    labels = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)[1]
    return Levels.of([str(label) for label in labels[first.codes]]).codes
