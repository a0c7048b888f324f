"""The document of result.json: metrics with their baselines, their protocol and their warnings.

What concerns one extractor is a block; the block of the first is the document's top level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smidgen.errors import SmidgenError, shown
from smidgen.evaluation.numbers import Sets, compute
from smidgen.evaluation.plan import Plan
from smidgen.evaluation.protocol import feature_protocol, image_protocol, metric_order, notes
from smidgen.evaluation.samples import Others
from smidgen.evaluation.statistics import Statistics
from smidgen.evaluation.stream import Measured
from smidgen.evaluation.table import CLIP, METRICS

TRANSFORMERS = ("dinov2", *CLIP)  # features that this library computes


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What is known of the images that were measured.

    `identity` names their content. `sampling` says how they were drawn, None where nothing does.
    `certain`: the class names are those that were drawn, and not guessed from names of files.
    `captions`: what was drawn has captions in the place of classes.
    """

    name: str
    identity: Mapping[str, str]
    sampling: Mapping[str, Any] | None
    certain: bool
    captions: bool = False
    warnings: tuple[str, ...] = ()
    skipped: tuple[Mapping[str, Any], ...] = ()


def make_document(
    plan: Plan,
    measured: Measured,
    known: Mapping[str, Statistics],
    source: Source,
    reference: str,
    others: Mapping[str, Others] | None = None,
) -> dict[str, Any]:
    """The document; with several extractors `by_features` has the block of each. `others` has for
    each of them the samples of other prompts.

    Raises: SmidgenError if a class that was drawn is not in the reference, or a metric that was
        named cannot be had.
    """
    intended, first = None if source.captions else measured.intended, known[plan.first.name]
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
        extractor.name: make_block(
            Sets(
                made=measured.accumulated[extractor.name],
                known=known[extractor.name],
                extractor=extractor,
                intended=intended,
                prompt=plan.prompt,
                told=source.captions or intended is not None,
                others=None if others is None else others[extractor.name],
            ),
            plan,
            source.identity[extractor.name],
            reference,
        )
        for extractor in plan.extractors
    }
    return whole_document(plan, blocks, source, intended, len(measured.numbers), warnings)


def whole_document(
    plan: Plan,
    blocks: Mapping[str, Mapping[str, Any]],
    source: Source,
    intended: Sequence[str] | None,
    num_images: int,
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The document around the blocks of the plan's extractors, by their names."""
    document, warnings = dict(blocks[plan.first.name]), list(warnings)
    document["protocol"] = document["protocol"] | image_protocol(
        intended,
        images=source.name,
        num_images=num_images,
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


def make_block(sets: Sets, plan: Plan, identity: str, reference: str) -> dict[str, Any]:
    """What belongs to one extractor: metrics with notes and baselines, protocol, warnings."""
    extractor, known = sets.extractor, sets.known
    names = metric_order(plan.metrics[extractor.name], sets.made.count)
    found, reasons = compute(names, sets)
    if plan.asked and reasons:
        raise SmidgenError(f"{'; '.join(reasons)} (reference: {reference})")
    warnings, beside = notes(
        extractor,
        names,
        num_images=sets.made.count,
        num_reference=known.gaussian.count,
        classes=sets.intended or known.classes or None,
    )
    block: dict[str, Any] = {"metrics": {name: one.value for name, one in found.items()}}
    settings = {}
    for name, one in found.items():
        if one.notes:
            beside[name] = [*beside.get(name, ()), *one.notes]
        if one.settings:
            settings[METRICS[name].group or name] = dict(one.settings)
        if one.baselines:
            block["baselines"] = {**block.get("baselines", {}), **one.baselines}
        block |= one.facts
    return block | {
        "notes": beside,
        "protocol": feature_protocol(
            extractor,
            known,
            images_identity=identity,
            reference=reference,
            metric_settings=settings,
        ),
        "warnings": [*reasons, *warnings],
    }
