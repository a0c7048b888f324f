"""The pictures of an explanation: maps of differences, maps of attention, bars of edits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from smidgen.explanation.run import Explanation, Look
from smidgen.explanation.sizes import Size
from smidgen.figures import COLOURS, styled

TILE = 1.25  # inches of a map
LINE = 0.19  # of a bar
OUTSIDE = "outside the blocks"


def figures_of(found: Explanation) -> dict[str, Figure]:
    """Each figure by the name of its files: `differences`; `attention`, where there is any; `edits`
    of the deltas.
    """
    with styled():
        figures = {"differences": _differences(found)}
        attended = [look for look in found.looks if look.attention is not None]
        if attended:
            figures["attention"] = _attention(found, attended)
        if any(look.sizes for look in found.looks):
            figures["edits"] = _edits([look for look in found.looks if look.sizes])
        return figures


def _differences(found: Explanation) -> Figure:
    first = found.looks[0].question
    versus = f'"{first.other}"' if first.other else "nothing"
    return _maps(
        found,
        found.looks,
        lambda look: look.differences.maps[:, 0],
        lambda look, time: f"{float(look.differences.relative[time]):.3f}",
        f'predictions for "{first.shown}" and for {versus}: their difference',
        "root mean square over channels",
        from_zero=True,
    )


def _attention(found: Explanation, looks: Sequence[Look]) -> Figure:
    def maps(look: Look) -> Tensor:
        assert look.attention is not None, "looks without attention are left out"
        return look.attention.maps[:, 0]

    def number(look: Look, time: int) -> str:
        assert look.attention is not None, "looks without attention are left out"
        return f"{float(look.attention.shares[time].mean()):.3f}"

    word = looks[0].question.word
    title = f'cross-attention to "{word}", the mean over heads and blocks'
    return _maps(found, looks, maps, number, title, "share of the attention", from_zero=False)


def _maps(
    found: Explanation,
    looks: Sequence[Look],
    maps: Callable[[Look], Tensor],
    number: Callable[[Look, int], str],
    title: str,
    unit: str,
    *,
    from_zero: bool,
) -> Figure:
    """A row for each delta, a column for each time, the picture at the left; one scale for all, its
    dark end at 0 or at the least of all.
    """
    levels = [float(found.base.process.level(t)) for t in found.noised.times]
    columns = 1 + len(levels)
    figure = Figure(
        figsize=(TILE * columns + 1.6, TILE * 1.05 * len(looks) + 0.7), layout="constrained"
    )
    panels = figure.subplots(len(looks), columns, squeeze=False)
    lowest, highest = (
        0.0 if from_zero else min(float(maps(look).min()) for look in looks),
        max(float(maps(look).max()) for look in looks),
    )
    image = None
    for row, look in zip(panels, looks, strict=True):
        _bare(row[0]).imshow(found.picture)
        row[0].set_ylabel(_name_of(look), rotation=0, ha="right", va="center", fontsize=9)
        for time, (panel, shown) in enumerate(zip(row[1:], maps(look), strict=True)):
            image = _bare(panel).imshow(shown.numpy(), cmap="magma", vmin=lowest, vmax=highest)
            panel.set_xlabel(number(look, time), fontsize=8)
    for panel, level in zip(panels[0][1:], levels, strict=True):
        panel.set_title(f"noise {level:.2f}", fontsize=9)
    panels[0][0].set_title("picture", fontsize=9)
    assert image is not None, "there is a map"
    figure.colorbar(image, ax=panels, label=unit, shrink=0.8)
    figure.suptitle(title, fontsize=10)
    return figure


def _bare(panel: Axes) -> Axes:
    panel.set_xticks([])
    panel.set_yticks([])
    panel.spines[:].set_visible(False)
    return panel


def _edits(looks: Sequence[Look]) -> Figure:
    """A row for each delta: how large its edits are by block and by site. A bar is the root mean
    square of the edits there, a dot one of them.
    """
    groups = []
    for look in looks:
        running = sorted(look.sizes, key=_order_of)  # blocks as they run, the others behind them
        groups.append((_grouped(running, _block_of), _grouped(running, _site_of)))
    finite = [s.relative for look in looks for s in look.sizes if isfinite(s.relative)]
    highest = max(finite, default=0.0)
    heights = [LINE * max(map(len, pair)) + 0.75 for pair in groups]
    figure = Figure(figsize=(10, sum(heights) + 0.4), layout="constrained")
    panels = figure.subplots(len(looks), 2, squeeze=False, sharex=True, height_ratios=heights)
    for number, (look, pair) in enumerate(zip(looks, groups, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        for panel, values, what in zip(panels[number], pair, ("block", "site"), strict=True):
            _bars(panel, values, colour)
            panel.set_ylim(max(map(len, pair)) - 0.4, -0.6)  # bars of one thickness
            panel.set_title(f"{_name_of(look).replace(chr(10), ', ')}, by {what}", fontsize=9)
    for panel in panels[-1]:
        panel.set_xlabel("change, relative to what is there")
        panel.set_xlim(0, 1.03 * highest or None)
    return figure


def _bars(panel: Axes, groups: dict[str, list[float]], colour: str) -> None:
    finite = {name: [v for v in values if isfinite(v)] for name, values in groups.items()}
    means = [float(np.sqrt(np.mean(np.square(v)))) if v else 0.0 for v in finite.values()]
    places = np.arange(len(finite))
    panel.barh(places, means, color=colour, alpha=0.75)
    for place, values in zip(places, finite.values(), strict=True):
        panel.plot(values, [place] * len(values), "k.", markersize=2.5, alpha=0.5)
    panel.set_yticks(places, list(finite), fontsize=7)


def _grouped(sizes: Sequence[Size], name: Callable[[Size], str]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for size in sizes:
        groups.setdefault(name(size), []).append(size.relative)
    return groups


def _order_of(size: Size) -> tuple[bool, int]:
    return size.block is None, size.block or 0


def _block_of(size: Size) -> str:
    if size.component:
        return size.component
    return OUTSIDE if size.block is None else size.module


def _site_of(size: Size) -> str:
    """Sites that differ in numbers alone are one, as `smidgen inspect` has them."""
    place = re.sub(r"(?<=\.)\d+", "*", size.place)
    return f"{size.component}: {place}" if size.component else place


def _name_of(look: Look) -> str:
    return look.name if look.method is None else f"{look.name}\n{look.method}"
