"""Results as text: the table of one evaluation, and of several side by side.

A number never stands alone: class agreement has chance and the classifier's agreement on real
images beside it, and every metric the notes of its protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SHARES = ("precision", "recall", "coverage", "class_agreement")
SHORT_LABELS = {"fd": "FD", "kid": "KID", "inception_score": "IS", "class_agreement": "agreement"}
UNKNOWN = "unknown"


def result_lines(document: Mapping[str, Any]) -> list[str]:
    """What was measured against what, and a line for each metric, for each of the features."""
    from smidgen.evaluation.compare import feature_blocks

    blocks = feature_blocks("the result", document)
    lines = [_header(document["protocol"])]
    for name, block in blocks.items():
        known = block["protocol"]["num_reference"]
        against = f"{known:,} images" if known else "an unknown number of images"
        lines.append(f"{name} features, against {against} of {block['protocol']['reference']}")
        lines += _aligned([_metric_row(metric, block) for metric in block["metrics"]])
    return lines


def _header(protocol: Mapping[str, Any]) -> str:
    """`480 images (10 of each of 48 classes), ddpm, 50 steps, guidance 1.5, seed 0`."""
    text = f"{protocol['num_images']:,} images"
    balance = protocol["class_balance"]
    if balance["kind"] != "unknown":
        least, most = balance["min_per_class"], balance["max_per_class"]
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        text += f" ({each} of each of {balance['num_classes']:,} classes)"
    sampling = protocol.get("sampling") or {}
    parts = [str(sampling["sampler"])] if "sampler" in sampling else []
    parts += [f"{sampling['steps']} steps"] if "steps" in sampling else []
    for name in ("guidance", "seed"):
        parts += [f"{name} {sampling[name]:g}"] if name in sampling else []
    if sampling.get("guidance_channels", "all") != "all":
        parts.append(f"guidance on the channels {sampling['guidance_channels']}")
    return ", ".join([text, *parts])


def _metric_row(name: str, block: Mapping[str, Any]) -> list[str]:
    from smidgen.evaluation.names import METRICS

    beside = list(block.get("notes", {}).get(name, ()))
    value = block["metrics"][name]
    if name == "class_agreement" and value is not None:
        beside = [baseline_text(block.get("baselines", {})), *beside]
    label = METRICS[name].label if name in METRICS else name
    return [f"  {label}", value_text(name, value), f"({'; '.join(beside)})" if beside else ""]


def baseline_text(baselines: Mapping[str, Any]) -> str:
    """What class agreement must be read against: `chance 4.2%, real images 95.0%`."""
    chance, real = (
        f"{value:.1%}" if value is not None else UNKNOWN
        for value in map(
            baselines.get, ("class_agreement_by_chance", "class_agreement_of_reference")
        )
    )
    return f"chance {chance}, real images {real}"


def value_text(name: str, value: Any) -> str:
    """A metric's number as it is commonly written."""
    if value is None:
        return UNKNOWN
    if isinstance(value, Mapping):
        digits = 5 if name == "kid" else 2
        return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:.2f}" if name == "fd" else f"{value:.4f}"


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """A row for each result and features, then the fields in which their protocols differ."""
    from smidgen.evaluation.compare import difference_text, metric_names
    from smidgen.evaluation.names import METRICS

    rows = comparison["rows"]
    names = metric_names(rows)
    heads = []
    for name in names:
        arrow = {True: " ↑", False: " ↓"}[METRICS[name].higher_is_better] if name in METRICS else ""
        heads.append(SHORT_LABELS.get(name, name) + arrow)
    table = [["", "features", "images", *heads]]
    for row in rows:
        cells = [_cell(name, row) for name in names]
        table.append([row["name"], row["features"], f"{row['num_images']:,}", *cells])
    lines = _aligned(table)
    lines += [f"different: {difference_text(entry)}" for entry in comparison["differences"]]
    return lines + [f"noted: {difference_text(entry)}" for entry in comparison["noted"]]


def _cell(name: str, row: Mapping[str, Any]) -> str:
    if name not in row["metrics"]:
        return ""  # not measured
    text = value_text(name, row["metrics"][name])
    marked = "*" if row.get("notes", {}).get(name) else ""
    if name == "class_agreement" and row["metrics"][name] is not None:
        text += f" ({baseline_text(row['baselines'])})"
    return text + marked


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows with columns padded to their widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in padded]
