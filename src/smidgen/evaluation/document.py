"""The document of result.json: metrics with their baselines, their protocol and their warnings.

What concerns one extractor is a block; the block of the first is the document's top level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smidgen.errors import SmidgenError, shown
from smidgen.evaluation import numbers
from smidgen.evaluation.accumulate import Accumulated
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.names import AGREEMENT, METRICS
from smidgen.evaluation.plan import Plan
from smidgen.evaluation.protocol import feature_protocol, image_protocol, metric_order, notes
from smidgen.evaluation.statistics import Statistics
from smidgen.evaluation.stream import Measured

TRANSFORMERS = ("dinov2", "clip-b32", "clip-l14")  # features that this library computes


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What is known of the images that were measured.

    `identity` names their content. `sampling` says how they were drawn, None where nothing does.
    `certain`: the class names are those that were drawn, and not guessed from names of files.
    """

    name: str
    identity: Mapping[str, str]
    sampling: Mapping[str, Any] | None
    certain: bool
    warnings: tuple[str, ...] = ()
    skipped: tuple[Mapping[str, Any], ...] = ()


def make_document(
    plan: Plan,
    measured: Measured,
    known: Mapping[str, Statistics],
    source: Source,
    reference: str,
) -> dict[str, Any]:
    """The document; with several extractors `by_features` has the block of each.

    Raises: SmidgenError if a class that was drawn is not in the reference, or a metric that was
        named cannot be had.
    """
    intended, first = measured.intended, known[plan.first.name]
    warnings = list(source.warnings)
    if first.num_skipped:
        warnings.append(f"{first.num_skipped} of the files in {reference} were skipped")
    if strange := strange_classes(intended, first.classes, reference, certain=source.certain):
        warnings.append(strange)
        intended = None
    if intended is not None and (undrawn := set(first.classes) - set(intended)):
        warnings.append(
            f"{len(undrawn)} of the reference's {len(first.classes)} classes are not among the "
            f'images, such as "{min(undrawn)}"'
        )
    blocks = {
        extractor.name: _block(
            plan,
            extractor,
            measured.accumulated[extractor.name],
            known[extractor.name],
            intended,
            places={
                "images_identity": source.identity[extractor.name],
                "reference": reference,
            },
        )
        for extractor in plan.extractors
    }
    document = dict(blocks[plan.first.name])
    document["protocol"] = document["protocol"] | image_protocol(
        intended,
        images=source.name,
        num_images=len(measured.numbers),
        sampling=source.sampling,
        device=plan.first.device,
        packages=("transformers",) if set(blocks) & set(TRANSFORMERS) else (),
    )
    for name, block in blocks.items():
        label = f"{name}: " if len(blocks) > 1 else ""
        warnings += [label + text for text in block["warnings"]]
    if len(blocks) > 1:
        document["by_features"] = blocks
    return document | {"skipped": [dict(one) for one in source.skipped], "warnings": warnings}


def strange_classes(
    intended: Sequence[str] | None, classes: Sequence[str], reference: str, *, certain: bool
) -> str | None:
    """The warning that the names of the images' files or folders are not those of classes.

    None if they are, or if nothing names the classes of the images or of the reference.

    Raises: SmidgenError if a class that was drawn is not among the reference's `classes`.
    """
    missing = sorted(set(intended or ()) - set(classes)) if classes else []
    if not missing:
        return None
    listed = ", ".join(f'"{shown(name)}"' for name in missing[:5])
    listed += f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
    if certain or len(missing) < len(set(intended or ())):
        raise SmidgenError(
            f"the reference {reference} has no class {listed}, of which images were drawn; "
            "give a reference with all their classes, or one without class folders"
        )
    return (
        f"the names of the images' folders or files ({listed}) are none of the reference's "
        f"{len(classes)} classes: their classes count as unknown"
    )


def _block(
    plan: Plan,
    extractor: Extractor,
    made: Accumulated,
    known: Statistics,
    intended: Sequence[str] | None,
    places: Mapping[str, str],
) -> dict[str, Any]:
    """What belongs to one extractor: metrics with notes and baselines, protocol, warnings.

    Raises: SmidgenError if a metric that was asked for cannot be had.
    """
    if intended is None:
        made = dataclasses.replace(made, text_cosines=None)
    wanted = [name for name in METRICS if name in plan.metrics[extractor.name]]
    names = metric_order(wanted, made.count)
    distances = [name for name in names if name != AGREEMENT]
    values, reasons = numbers.compute(distances, made, known, extractor)
    found: dict[str, Any] = {}
    if AGREEMENT in names:
        try:
            found = numbers.agreement(intended, made, known, extractor)
        except numbers.Unknown as reason:
            reasons.append(f"class agreement unknown: {reason}")
        values[AGREEMENT] = found.pop(AGREEMENT, None)
    if plan.asked and reasons:
        raise SmidgenError(f"{'; '.join(reasons)} (reference: {places['reference']})")
    num_reference = known.gaussian.count
    warnings, beside = notes(
        extractor,
        names,
        num_images=made.count,
        num_reference=num_reference,
        classes=intended or known.classes or None,
    )
    settings = numbers.settings(names, made, known)
    if "kid" in settings and settings["kid"]["subset_size"] == made.count:
        words = f"every subset is all {made.count} images, so that ± is too small"
        beside.setdefault("kid", []).append(words)
    if "clip_t" in names:
        settings["clip_t"] = {"prompt": plan.prompt}
    return {
        "metrics": {name: values[name] for name in names},
        **found,
        "notes": beside,
        "protocol": feature_protocol(
            extractor,
            num_reference=num_reference,
            reference_identity=known.identity,
            metric_settings=settings,
            **places,
        ),
        "warnings": [*reasons, *warnings],
    }
