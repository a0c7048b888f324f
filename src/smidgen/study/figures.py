"""The figures of a report, as matplotlib draws them without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
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
            "curves": curves(design, results),
            "cells": cells(design, rows),
            "effects": effects(analysis),
            "residuals": None if analysis["anova"] is None else residuals(analysis["anova"]),
        }
        return {name: one for name, one in found.items() if one is not None}


def cost(analysis: Mapping[str, Any]) -> Drawn:
    """DiffFit's Figure 3: the metric against what is trained; the area is the time."""
    arms = [arm for arm in analysis["arms"] if {"mean", "trainable", "seconds"} <= set(arm)]
    if len({arm["trainable"] for arm in arms}) < 2:
        return None
    figure, axes = new()
    longest = max(arm["seconds"] for arm in arms) or 1.0
    for number, arm in enumerate(arms):
        colour = COLOURS[number % len(COLOURS)]
        x, y = arm["trainable"], arm["mean"]
        size = 900 * arm["seconds"] / longest
        axes.scatter(x, y, s=size, color=colour, alpha=0.35, linewidths=0)
        if arm["interval"] is not None:
            low, high = arm["interval"]
            axes.plot([x, x], [low, high], color=colour, linewidth=1.5)
        axes.plot(x, y, MARKERS[number % len(MARKERS)], color=colour, markersize=5)
        axes.annotate(arm["arm"], (x, y), (6, 6), textcoords="offset points", fontsize=9)
    axes.set(xscale="log", xlabel="trained parameters", ylabel=f"{analysis['metric']} (mean)")
    axes.margins(0.18)
    words = f"{analysis['metric']} against trained parameters; the area of a disc is training time"
    return words, figure


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
    """Two factors as a heat-map of cell means; a cell without a result is empty."""
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
    axes.set_xticks(range(len(across)), across, rotation=30, ha="right")
    axes.set_yticks(range(len(down)), down)
    axes.set(xlabel=second, ylabel=first)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label=metric)
    return f"mean {metric} of each cell of {first} and {second}", figure


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
