"""What the numbers of an evaluation depend on, and the warnings that belong beside them.

Plain JSON; how a number is computed is in metrics.py, which fields of two protocols must agree in
compare.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from smidgen.evaluation.table import METRICS, needing

if TYPE_CHECKING:
    from smidgen.evaluation.features import Extractor
    from smidgen.evaluation.statistics import Statistics

# Under this the bias of the Frechet distance outweighs most differences that are of interest
# (Binkowski et al. 2018, arXiv 1801.01401, section 4; Chong & Forsyth 2020, arXiv 1911.07023).
FEW_IMAGES = 10_000


def image_protocol(
    intended: Sequence[str] | None,
    *,
    images: str,
    num_images: int,
    sampling: Mapping[str, Any] | None,
    device: object,
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """The part that concerns the images: how many, of which classes, how they were drawn."""
    packages = ("smidgen", "torch", "pillow", "numpy", *packages)
    return {
        "images": images,
        "num_images": num_images,
        "class_balance": class_balance(intended),
        "sampling": None if sampling is None else dict(sampling),
        "device": str(device),
        "versions": {name: version_of(name) for name in packages},
    }


def feature_protocol(
    extractor: Extractor,
    known: Statistics,
    *,
    images_identity: str,
    reference: str,
    metric_settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The part that concerns the features and the reference that they were compared with."""
    return {
        "features": extractor.name,
        "features_sha256": extractor.sha256,
        "feature_dimensions": extractor.dim,
        "feature_precision": "float32",
        "image_size": extractor.image_size,
        "resize": extractor.resize,
        "covariance_divisor": "N - 1",
        "metric_settings": dict(metric_settings),
        "num_reference": known.gaussian.count or None,
        "images_identity": images_identity,
        "reference": reference,
        "reference_identity": known.identity,
    }


def class_balance(intended: Sequence[str] | None) -> dict[str, Any]:
    """`kind` even (counts differ by one at most), uneven or unknown; the counts' extremes."""
    if intended is None:
        return {"kind": "unknown"}
    counts = Counter(intended).values()
    least, most = min(counts), max(counts)
    return {
        "kind": "even" if most - least <= 1 else "uneven",
        "num_classes": len(counts),
        "min_per_class": least,
        "max_per_class": most,
    }


def metric_order(names: Collection[str], num_images: int | None) -> list[str]:
    """The names as they are shown, in the order of the table and unknown ones last; where images
    are few, a biased metric after the unbiased one.
    """
    order = [name for name in METRICS if name in names] + sorted(set(names) - set(METRICS))
    few = num_images is not None and num_images < FEW_IMAGES
    for name in [name for name in order if name in METRICS] if few else ():
        first = METRICS[name].unbiased
        if first in order:
            order.remove(first)
            order.insert(order.index(name), first)
    return order


def notes(
    extractor: Extractor,
    metrics: Sequence[str],
    *,
    num_images: int,
    num_reference: int,
    classes: Sequence[str] | None,
) -> tuple[list[str], dict[str, list[str]]]:
    """Warnings in full, and for each metric the few words that stand beside its number.

    `classes`: what the images show or were meant to show, None where nothing says it.
    """
    warnings: list[str] = []
    beside: dict[str, list[str]] = {name: [] for name in metrics}

    def note(names: Sequence[str], words: str, warning: str) -> None:
        warnings.append(warning)
        for name in names:
            beside[name].append(words)

    if (strange := unseen(extractor, classes)) is not None:
        distances = [name for name in metrics if METRICS[name].needs != "classes"]
        note(distances, "features have not seen this domain", strange)
    for name in metrics if num_images < FEW_IMAGES else ():
        if (first := METRICS[name].unbiased) is not None:
            note(
                [name],
                f"under {FEW_IMAGES:,} images",
                f"{num_images:,} images: under {FEW_IMAGES:,} the {METRICS[name].label} is biased "
                "upwards by an amount that depends on their number; read "
                f"{METRICS[first].short or first} first",
            )
    of_covariance = needing(metrics, "gaussian")
    for what, count in (("images", num_images), ("reference images", num_reference)):
        if 0 < count <= extractor.dim and of_covariance:
            note(
                of_covariance,
                f"{count} {what} for {extractor.dim} dimensions",
                f"{count} {what} for {extractor.dim} feature dimensions: the covariance is "
                "singular and the distance is too large; compare it only at this number",
            )
    return warnings, {name: words for name, words in beside.items() if words}


def unseen(extractor: Extractor, classes: Sequence[str] | None) -> str | None:
    """The warning that features were trained on other pictures than these, None if they were not.

    Features without a `domain` are taken for general ones.
    """
    if extractor.domain is None:
        return None
    known = f'the features "{extractor.name}" know {len(extractor.domain)} names only'
    if classes is None:
        return f"{known}, and nothing says what the images show: the numbers may mean nothing"
    domain = set(extractor.domain)
    strange = sorted(name for name in {*classes} - domain if not {*name.split()} <= domain)
    if not strange:
        return None
    return f'{known} and have not seen "{strange[0]}"' + (
        f" and {len(strange) - 1} more: the numbers may mean nothing"
        if len(strange) > 1
        else ": the numbers may mean nothing"
    )


def version_of(package: str) -> str | None:
    """The version that is installed, None where the package runs from its source tree."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
