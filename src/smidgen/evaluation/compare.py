"""Results side by side: a table of metrics, refused where the protocols differ in what matters.

A result is the document that run.py makes. Nothing is computed again here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.protocol import metric_order
from smidgen.evaluation.schemas import Result
from smidgen.files.reading import Unreadable, fit

# Two numbers are comparable only if all of these agree; a dot goes into a nested table.
MATTERS = (
    *("features_sha256", "resize", "image_size", "num_images"),
    *("num_reference", "reference_identity", "covariance_divisor"),
    *("class_balance.kind", "class_balance.num_classes"),
    *("class_balance.min_per_class", "class_balance.max_per_class"),
    *("sampling.sampler", "sampling.steps", "sampling.guidance"),
    *("sampling.guidance_channels", "sampling.precision"),
    *("sampling.guidance_kind", "sampling.guidance_delta", "sampling.guidance_interval"),
    *("personalisation.prompts", "personalisation.other_prompts"),
)
# These may differ between the things that are compared; they are shown, and never refused.
SHOWN = (
    *("sampling.seed", "sampling.base", "sampling.delta_sha256", "sampling.edits"),
    *("versions.smidgen", "versions.torch", "versions.transformers"),
    *("versions.pillow", "versions.numpy", "device", "personalisation.token"),
)
OF_IMAGES = ("num_images", "class_balance", "sampling", "versions", "device", "personalisation")


def compare(
    documents: Mapping[str, Mapping[str, Any]], *, any_protocol: bool = False
) -> dict[str, Any]:
    """The metrics of several results by name, with what their protocols share and do not.

    `rows` has for each name and features: its `metrics`, `baselines`, `notes` and `warnings`.
    `differences` lists the fields that matter and differ, with each result's value: empty unless
    `any_protocol`. `noted` lists those that may differ and do.

    Raises: UsageError for fewer than two results, or protocols that differ in what matters;
        SmidgenError for a document that is no result.
    """
    if len(documents) < 2:
        raise UsageError(f"{len(documents)} result to compare; give two or more")
    blocks = {name: feature_blocks(name, document) for name, document in documents.items()}
    kinds = list(dict.fromkeys(kind for found in blocks.values() for kind in found))
    shared = [kind for kind in kinds if all(kind in found for found in blocks.values())]
    differences: list[dict[str, Any]] = []
    if len(shared) < len(kinds):
        features = {name: sorted(found) for name, found in blocks.items()}
        differences.append({"field": "features", "values": features})
    noted = []
    for kind in shared:
        protocols = {name: found[kind]["protocol"] for name, found in blocks.items()}
        fields = (*MATTERS, *_shared_settings(protocols.values()))
        differences += _differing(protocols, fields, kind if len(kinds) > 1 else None)
        noted += [entry for entry in _differing(protocols, SHOWN, None) if entry not in noted]
    # what concerns the samples differs alike for all features: once is enough
    differences = [
        entry for place, entry in enumerate(differences) if entry not in differences[:place]
    ]
    if differences and not any_protocol:
        listed = "; ".join(map(difference_text, differences))
        raise UsageError(
            f"these results have different protocols ({listed}); --any-protocol shows them anyway"
        )
    return {
        "rows": [_row(name, kind, found[kind]) for name, found in blocks.items() for kind in found],
        "differences": differences,
        "noted": noted,
    }


def feature_blocks(name: str, document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """For each of a result's features its metrics, baselines and protocol; the first has the
    warnings of all.

    Raises: SmidgenError if the document is no result.
    """
    try:
        fit(document, Result)
    except Unreadable as error:
        raise SmidgenError(
            f"{name} is no result of smidgen evaluate ({error.reason}); give its result.json"
        ) from error
    whole = {"warnings": (), **document}
    blocks = {whole["protocol"]["features"]: whole}
    for kind, block in document.get("by_features", {}).items():
        protocol = {**whole["protocol"], **block["protocol"]}
        warnings = whole["warnings"] if kind in blocks else ()
        blocks[kind] = {**block, "warnings": warnings, "protocol": protocol}
    return blocks


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The metrics that any row has a number of, in the order for the row with fewest images."""
    found = {name for row in rows for name, value in row["metrics"].items() if value is not None}
    counts = [row["num_images"] for row in rows if row.get("num_images") is not None]
    return metric_order(found, min(counts, default=None))


def _row(name: str, kind: str, block: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "features": kind,
        "num_images": block["protocol"].get("num_images"),
        "metrics": dict(block["metrics"]),
        "baselines": dict(block.get("baselines", {})),
        "notes": dict(block.get("notes", {})),
        "warnings": list(block.get("warnings", ())),
    }


def _differing(
    protocols: Mapping[str, Mapping[str, Any]], names: Sequence[str], kind: str | None
) -> list[dict[str, Any]]:
    """The fields whose values are not all equal; what a protocol lacks counts as unknown."""
    found = []
    for field in names:
        values = {name: _lookup(protocol, field) for name, protocol in protocols.items()}
        if len({json.dumps(value, sort_keys=True) for value in values.values()}) > 1:
            of_features = kind is not None and not field.startswith(OF_IMAGES)
            label = f"{field} ({kind})" if of_features else field
            found.append({"field": label, "values": values})
    return found


def _shared_settings(protocols: Iterable[Mapping[str, Any]]) -> list[str]:
    """The settings of the metrics that all results have; what only some have is no difference."""
    found = [set(protocol.get("metric_settings") or ()) for protocol in protocols]
    return [f"metric_settings.{name}" for name in sorted(set.intersection(*found))]


def _lookup(protocol: Mapping[str, Any], field: str) -> Any:
    value: Any = protocol
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def difference_text(difference: Mapping[str, Any]) -> str:
    """`steps: 50 in a, 20 in b`, hashes shortened."""
    values = [f"{_short(value)} in {name}" for name, value in difference["values"].items()]
    return f"{difference['field']}: {', '.join(values)}"


def _short(value: Any) -> str:
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
