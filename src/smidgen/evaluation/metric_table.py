"""Results as text: the table of one evaluation, and of several side by side.

A number never stands alone: beside it are its baselines and the notes of its protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from smidgen.evaluation.compare import difference_text, feature_blocks, metric_names
from smidgen.evaluation.table import METRICS

UNKNOWN = "unknown"


def result_lines(document: Mapping[str, Any]) -> list[str]:
    """What was measured against what, and a line for each metric, for each of the features."""
    blocks = feature_blocks("the result", document)
    lines = [header_text(document["protocol"])]
    for name, block in blocks.items():
        protocol = block["protocol"]
        against = f"{_count(protocol.get('num_reference'))} of {protocol.get('reference')}"
        lines.append(f"{name} features, against {against}")
        lines += aligned([_metric_row(metric, block) for metric in block["metrics"]])
    return lines


def header_text(protocol: Mapping[str, Any]) -> str:
    """`480 images (10 of each of 48 classes), ddpm, 50 steps, guidance 1.5, seed 0`."""
    text = _count(protocol.get("num_images"))
    balance = protocol.get("class_balance") or {}
    least, most = (balance.get(name) for name in ("min_per_class", "max_per_class"))
    if least is not None and most is not None:
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        text += f" ({each} of each of {balance.get('num_classes') or 0:,} classes)"
    if "personalisation" in protocol:
        text += f" of {len(protocol['personalisation']['prompts'])} prompts"
    sampling = {k: v for k, v in (protocol.get("sampling") or {}).items() if v is not None}
    parts = [sampling["sampler"]] if "sampler" in sampling else []
    parts += [f"{sampling['steps']} steps"] if "steps" in sampling else []
    parts += [f"guidance {sampling['guidance']:g}"] if "guidance" in sampling else []
    parts += [f"seed {sampling['seed']}"] if "seed" in sampling else []
    if sampling.get("guidance_channels", "all") != "all":
        parts.append(f"guidance on the channels {sampling['guidance_channels']}")
    if "guidance_kind" in sampling:
        parts.append(f"guidance {sampling['guidance_kind']}")
    if interval := sampling.get("guidance_interval"):
        parts.append(f"guidance from {interval[0]:g} to {interval[1]:g} of the noise")
    if edits := sampling.get("edits"):
        parts.append(f"edits {edits}")
    return ", ".join([text, *parts])


def _count(number: int | None) -> str:
    return f"{number:,} images" if number else "an unknown number of images"


def _metric_row(name: str, block: Mapping[str, Any]) -> list[str]:
    beside = [
        *baseline_texts(name, block["metrics"][name], block.get("baselines", {})),
        *block.get("notes", {}).get(name, ()),
    ]
    label = METRICS[name].label if name in METRICS else name
    text = value_text(name, block["metrics"][name])
    return [f"  {label}", text, f"({'; '.join(beside)})" if beside else ""]


def baseline_texts(name: str, value: Any, baselines: Mapping[str, Any]) -> list[str]:
    """What the metric must be read against: `chance 4.2%, real images 95.0%`."""
    words = METRICS[name].baselines if name in METRICS and value is not None else {}
    known = {said: baselines[key] for key, said in words.items() if key in baselines}
    found = [f"{said} {value_text(name, number)}" for said, number in known.items()]
    return [", ".join(found)] if found else []


def value_text(name: str, value: Any) -> str:
    """A metric's number as it is commonly written."""
    if value is None:
        return UNKNOWN
    form = METRICS[name].form if name in METRICS else ".4f"
    if isinstance(value, Mapping):
        return f"{value['mean']:{form}} ± {value['std']:{form}}"
    return f"{value:{form}}"


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """A row for each result and features, then the fields in which their protocols differ."""
    rows = comparison["rows"]
    names = metric_names(rows)
    table = [["", "features", "images", *map(_head, names)]]
    for row in rows:
        cells = [_cell(name, row) for name in names]
        count = UNKNOWN if row["num_images"] is None else f"{row['num_images']:,}"
        table.append([row["name"], row["features"], count, *cells])
    lines = aligned(table)
    lines += [f"different: {difference_text(entry)}" for entry in comparison["differences"]]
    return lines + [f"noted: {difference_text(entry)}" for entry in comparison["noted"]]


def _head(name: str) -> str:
    if name not in METRICS:
        return name
    return f"{METRICS[name].short or name} {'↑' if METRICS[name].higher_is_better else '↓'}"


def warning_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each warning of the rows once, behind the names of the results that have it."""
    about: dict[str, list[str]] = {}
    for row in rows:
        for text in row["warnings"]:
            about.setdefault(text, []).append(row["name"])
    return [f"warning: {', '.join(dict.fromkeys(names))}: {text}" for text, names in about.items()]


def _cell(name: str, row: Mapping[str, Any]) -> str:
    if name not in row["metrics"]:
        return ""  # not measured
    value = row["metrics"][name]
    beside = [f" ({text})" for text in baseline_texts(name, value, row["baselines"])]
    marked = "*" if row.get("notes", {}).get(name) else ""
    return value_text(name, value) + "".join(beside) + marked


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows with columns padded to their widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in padded]


def metric_help() -> str:
    """A line for each metric: name, * if measured by default, what it is, on which features."""
    width = max(map(len, METRICS)) + 1
    lines = []
    for name, row in METRICS.items():
        only = f" ({', '.join(row.features)} only)" if row.features else ""
        lines.append(f"  {name + '*' * row.by_default:<{width}} {row.help}{only}")
    return "\n".join(lines)
