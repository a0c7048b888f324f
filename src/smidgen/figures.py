"""How matplotlib draws here, without a display: colours, style, and a figure as the bytes of a
file, the same every time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# told apart in print and by the colour-blind (Okabe and Ito 2008)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8a8a00")
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "smidgen",
}


@contextmanager
def styled() -> Iterator[None]:
    """Within, figures are made and written in this style."""
    with mpl.rc_context(STYLE):
        yield


def new(width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    """An empty figure in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def svg(figure: Figure) -> str:
    """The figure as an element of a page, the same bytes every time."""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()
