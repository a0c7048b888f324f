"""The figures of a report, as matplotlib draws them without a display."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from scipy.stats import probplot, t

from smidgen.figures import COLOURS, MARKERS, new, styled
from smidgen.study.analysis import arm_name, block_name
from smidgen.study.design import Design
from smidgen.study.runs import Kept

Results = Sequence[tuple[Mapping[str, Any], Kept]]
Drawn = tuple[str, Figure] | None


def figures_of(
    design: Design, analysis: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], results: Results
) -> dict[str, tuple[str, Figure]]:
    """Each figure that the study gives rise to, by file name, with the words that describe it."""
    with styled():
        found = {
            "cost": cost(analysis),
            "spent": spent(analysis),
            "curves": curves(design, results),
            "cells": cells(design, rows),
            "effects": effects(analysis),
            "residuals": None if analysis["anova"] is None else residuals(analysis["anova"]),
        }
        return {name: one for name, one in found.items() if one is not None}


def cost(analysis: Mapping[str, Any]) -> Drawn:
    """DiffFit's Figure 3: the metric against what is trained; the area is the time, that of a step
    where all were timed.
    """
    arms = [arm for arm in analysis["arms"] if {"mean", "trainable", "seconds"} <= set(arm)]
    if len({arm["trainable"] for arm in arms}) < 2:
        return None
    timed = all("cost" in arm for arm in arms)
    taken = [arm["cost"]["step_ms"][0] if timed else arm["seconds"] for arm in arms]
    figure, axes = new()
    longest = max(taken) or 1.0
    for number, (arm, time) in enumerate(zip(arms, taken, strict=True)):
        x, colour = arm["trainable"], COLOURS[number % len(COLOURS)]
        axes.scatter(x, arm["mean"], s=900 * time / longest, color=colour, alpha=0.35, linewidths=0)
        point(axes, number, arm, x)
    axes.set(xscale="log", xlabel="trained parameters", ylabel=f"{analysis['metric']} (mean)")
    axes.margins(0.18)
    spread(axes.texts)
    what = "the time of a step" if timed else "training time"
    words = f"{analysis['metric']} against trained parameters; the area of a disc is {what}"
    return words, figure


def spent(analysis: Mapping[str, Any]) -> Drawn:
    """DiffFit's Table 2 drawn: the metric against operations, without and with those of the base's
    training and of the delta that an arm begins from.
    """
    arms = [arm for arm in analysis["arms"] if "mean" in arm and "cost" in arm]
    if not any(arm["cost"]["gflops_of_base"] for arm in arms):
        return None
    figure, axes = new()
    for number, arm in enumerate(arms):
        cost, colour = arm["cost"], COLOURS[number % len(COLOURS)]
        x, y = cost["gflops"], arm["mean"]
        every = x + cost["gflops_before"] + (cost["gflops_of_base"] or 0.0)
        axes.plot([x, every], [y, y], color=colour, linewidth=0.8, linestyle=":")
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(every, y, marker, color=colour, markersize=6, fillstyle="none")
        point(axes, number, arm, x)
    axes.set(xscale="log", xlabel="GFLOP of training", ylabel=f"{analysis['metric']} (mean)")
    axes.margins(0.18)
    spread(axes.texts)
    words = f"{analysis['metric']} against the operations of the training, and (open) of all before"
    return words, figure


def point(axes: Axes, number: int, arm: Mapping[str, Any], x: float) -> None:
    """An arm at its mean, with its interval and its name."""
    colour, y = COLOURS[number % len(COLOURS)], arm["mean"]
    if arm["interval"] is not None:
        axes.plot([x, x], arm["interval"], color=colour, linewidth=1.5)
    axes.plot(x, y, MARKERS[number % len(MARKERS)], color=colour, markersize=5)
    axes.annotate(arm["arm"], (x, y), (6, 6), textcoords="offset points", fontsize=9)


def spread(names: Iterable[Text]) -> None:
    """Moves names up until none lies on another, those of lower points first."""
    placed: list[Bbox] = []
    for name in sorted(names, key=lambda one: one.get_window_extent().y0):
        while any(name.get_window_extent().overlaps(other) for other in placed):
            across, up = name.get_position()
            name.set_position((across, up + 1))
        placed.append(name.get_window_extent())


def curves(design: Design, results: Results) -> Drawn:
    """DiffFit's Figure 6: the metric during training, a panel a block, the mean over seeds."""
    metric = design.table.metric
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row, result in results:
        for step, numbers in result.curve.items():
            if (value := numbers.get(metric)) is not None:
                arms = found.setdefault(block_name(design, row), {})
                steps = arms.setdefault(arm_name(design, row), {})
                steps.setdefault(step, []).append(value)
    if not any(len(steps) > 1 for arms in found.values() for steps in arms.values()):
        return None
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(7, 3.0 * lines), layout="constrained")
    panels = np.atleast_1d(figure.subplots(lines, columns, squeeze=False)).ravel()
    for panel in panels[len(found) :]:
        panel.set_visible(False)
    names = list(dict.fromkeys(arm for arms in found.values() for arm in arms))
    for panel, (block, arms) in zip(panels, found.items(), strict=False):
        for arm, steps in arms.items():
            number = names.index(arm)
            points = sorted(steps.items())
            panel.plot(
                [step for step, _ in points],
                [float(np.mean(values)) for _, values in points],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                label=arm,
            )
        panel.set(title=block, xlabel="steps", ylabel=metric)
    panels[0].legend(frameon=False, fontsize=8)
    return f"{metric} during training", figure


def cells(design: Design, rows: Sequence[Mapping[str, Any]]) -> Drawn:
    """Two factors as a heat-map of cell means; a cell without a result is empty, and a line goes
    around those that the design has: the staircase of inputs before outputs.
    """
    if len(design.arms) != 2:
        return None
    metric, (first, second) = design.table.metric, design.arms
    down, across = list(design.factors[first]), list(design.factors[second])
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.get(metric) is not None and row["state"] == "finished":
            values.setdefault((row[first], row[second]), []).append(row[metric])
    if not values:
        return None
    grid = np.full((len(down), len(across)), np.nan)
    for (one, other), found in values.items():
        grid[down.index(one), across.index(other)] = np.mean(found)
    figure, axes = new(1.6 + 0.85 * len(across), 1.2 + 0.42 * len(down))
    image = axes.imshow(grid, cmap="viridis", aspect="auto")
    middle = np.nanmean([np.nanmin(grid), np.nanmax(grid)])
    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            colour = "white" if value < middle else "black"
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", color=colour)
    of_design = {(cell[first], cell[second]) for cell in design.cells()}
    inside = np.array([[(one, other) in of_design for other in across] for one in down])
    outline(axes, inside)
    axes.set_xticks(range(len(across)), across, rotation=30, ha="right")
    axes.set_yticks(range(len(down)), down)
    axes.set(xlabel=second, ylabel=first)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label=metric)
    return f"mean {metric} of each cell of {first} and {second}", figure


def outline(axes: Axes, inside: np.ndarray) -> None:
    """A line between cells of which one is inside (rows, columns) and the other is not."""
    if inside.all():
        return
    framed = np.pad(inside, 1)
    for row, column in np.argwhere(framed[1:, 1:-1] != framed[:-1, 1:-1]):
        axes.plot([column - 0.5, column + 0.5], [row - 0.5] * 2, color="black", linewidth=1.5)
    for row, column in np.argwhere(framed[1:-1, 1:] != framed[1:-1, :-1]):
        axes.plot([column - 0.5] * 2, [row - 0.5, row + 0.5], color="black", linewidth=1.5)


def effects(analysis: Mapping[str, Any]) -> Drawn:
    """Main effects: the mean of each level, with the interval that its factor's error gives."""
    found = analysis["anova"]
    if found is None or not found["one_way"]:
        return None
    names = list(found["one_way"])
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
    for panel, name in zip(panels, names, strict=True):
        levels = found["levels"][name]
        tested = found["terms"].get(name, found["one_way"][name])
        error = tested["mean_square_residual"]
        means = np.array([one["mean"] for one in levels])
        halves = t.ppf(0.975, tested["df_residual"]) * np.sqrt(
            error / np.array([one["rows"] for one in levels])
        )
        panel.errorbar(range(len(levels)), means, halves, fmt="o", color=COLOURS[0], capsize=3)
        labels = [one["level"] for one in levels]
        panel.set_xticks(range(len(levels)), labels, rotation=35, ha="right")
        panel.set_title(name)
    panels[0].set_ylabel(f"mean {found['metric']}")
    return f"mean {found['metric']} of each level, with 95 % intervals", figure


def residuals(document: Mapping[str, Any]) -> tuple[str, Figure]:
    """Whether the assumptions of an analysis of variance look right: the residuals of its model
    against the fitted values, and against the quantiles of a normal distribution (Filliben's
    places), with the line on which normal ones of their spread would lie.
    """
    found = document["assumptions"]["residuals"]
    fitted, left = np.array(found["fitted"]), np.array(found["residuals"])
    with styled():
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        points: dict[str, Any] = {"color": COLOURS[0], "alpha": 0.6, "markersize": 4}
        panels[0].plot(fitted, left, "o", **points)
        panels[0].axhline(0, color="#5a616b", linewidth=1)
        panels[0].set(xlabel=f"fitted {document['metric']}", ylabel="residual")
        quantiles, ordered = probplot(left, fit=False)
        panels[1].plot(quantiles, ordered, "o", **points)
        panels[1].axline((0, 0), slope=float(left.std()), color="#5a616b", linewidth=1)
        panels[1].set(xlabel="normal quantile")
    words = f"residuals of {document['metric']} against fitted values and normal quantiles"
    return words, figure
