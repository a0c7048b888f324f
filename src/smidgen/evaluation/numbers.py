"""One metric's number from what was accumulated of the images and what is known of the reference.

The formulas are in metrics.py, kernels.py, neighbours.py and similarity.py; here they get what they
need, or the reason why they cannot have it is told.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from smidgen.errors import SmidgenError
from smidgen.evaluation.accumulate import Accumulated
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.kernels import cmmd, kid
from smidgen.evaluation.metrics import class_agreement, frechet_distance, inception_score
from smidgen.evaluation.names import METRICS
from smidgen.evaluation.neighbours import prdc
from smidgen.evaluation.similarity import mean_cosine
from smidgen.evaluation.statistics import Statistics

NEIGHBOURS = ("precision", "recall", "density", "coverage")
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
KID_SEED = 0  # fixed, so that the same features give the same number


class Unknown(SmidgenError):
    """A metric that cannot be computed here; the message says why."""


def compute(
    names: Sequence[str], made: Accumulated, known: Statistics, extractor: Extractor
) -> tuple[dict[str, Any], list[str]]:
    """The metrics by name, None for one that cannot be computed, and why those cannot.

    Class agreement is none of them: see `agreement`.
    """
    values: dict[str, Any] = {}
    reasons: list[str] = []
    for name in names:
        if name in values:
            continue
        try:
            values |= _one(name, made, known, extractor)
        except Unknown as reason:
            values[name] = None
            reasons.append(f"{name} unknown: {reason}")
    return {name: values[name] for name in names}, reasons


def _one(name: str, made: Accumulated, known: Statistics, extractor: Extractor) -> dict[str, Any]:
    """The value of one metric; of all four that share their neighbours."""
    if name == "fd":
        a, b = made.gaussian, known.gaussian
        return {name: frechet_distance(a.mean, a.covariance, b.mean, b.covariance)}
    if name == "inception_score":
        assert made.probabilities is not None, "the accumulator was told of the metric"
        return {name: dataclasses.asdict(inception_score(made.probabilities))}
    if name == "clip_t":
        if made.text_cosines is None:
            raise Unknown("nothing says what each image was meant to show")
        return {name: float(made.text_cosines.mean())}
    if name in ("clip_i", "dino_i"):
        if known.mean_direction is None:
            raise Unknown("the reference has no mean direction; give the folder of its images")
        return {name: mean_cosine(made.mean_direction, known.mean_direction)}
    return _of_features(name, made, known, extractor)


def _of_features(
    name: str, made: Accumulated, known: Statistics, extractor: Extractor
) -> dict[str, Any]:
    """The metrics that need all features of both sets."""
    if known.features is None:
        raise Unknown("the reference holds no features; give the folder of its images")
    assert made.features is not None, "the accumulator was told of the metric"
    least = METRICS[name].min_images
    for what, count in (("images", len(made.features)), ("reference", len(known.features))):
        if count < least:
            raise Unknown(f"{count} {what}; it takes {least}")
    device = extractor.device
    if name == "kid":
        generator = torch.Generator().manual_seed(KID_SEED)
        found = kid(
            made.features,
            known.features,
            num_subsets=KID_SUBSETS,
            subset_size=KID_SUBSET_SIZE,
            generator=generator,
            device=device,
        )
        return {name: dataclasses.asdict(found)}
    if name == "cmmd":
        return {name: cmmd(made.features, known.features, device=device)}
    return dataclasses.asdict(prdc(known.features, made.features, device=device))


def settings(names: Sequence[str], made: Accumulated, known: Statistics) -> dict[str, Any]:
    """What the numbers depend on besides the features."""
    found: dict[str, Any] = {}
    if "kid" in names and known.features is not None:
        size = min(KID_SUBSET_SIZE, made.count, len(known.features))
        found["kid"] = {"num_subsets": KID_SUBSETS, "subset_size": size, "seed": KID_SEED}
    if set(names) & set(NEIGHBOURS):
        found["neighbours"] = {"k_precision": 3, "k_density": 5}
    return found


def agreement(
    intended: Sequence[str] | None, made: Accumulated, known: Statistics, extractor: Extractor
) -> dict[str, Any]:
    """Class agreement with its baselines and by class.

    Scripts share names of letters: a head that knows the reference's other classes too comes first.

    Raises: Unknown if nothing says what the images were meant to show, or no head knows it.
    """
    if intended is None:
        raise Unknown("nothing says what each image was meant to show")
    drawn = set(intended)
    head = extractor.head_for(drawn | set(known.classes)) or extractor.head_for(drawn)
    if head is None:
        raise Unknown(f'"{extractor.name}" has no head for the classes')
    index = {name: number for number, name in enumerate(extractor.heads[head])}
    labels = torch.tensor([index[name] for name in intended])
    predicted = made.predictions[head]
    hits: dict[str, list[bool]] = defaultdict(list)
    for name, hit in zip(intended, (predicted == labels).tolist(), strict=True):
        hits[name].append(hit)
    return {
        "class_agreement": class_agreement(predicted, labels),
        "baselines": {
            "class_agreement_by_chance": 1 / len(index),
            "class_agreement_of_reference": _reference_agreement(known, head, index),
        },
        "head": head,
        "agreement_by_class": {name: sum(hits[name]) / len(hits[name]) for name in sorted(hits)},
    }


def _reference_agreement(known: Statistics, head: str, index: Mapping[str, int]) -> float | None:
    """How far the classifier agrees with the reference's own class names; None if not known."""
    if head not in known.predictions or not known.classes or not set(known.classes) <= set(index):
        return None
    names = torch.tensor([index[name] for name in known.classes])
    return class_agreement(known.predictions[head], names[known.labels])
