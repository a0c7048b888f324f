"""One evaluation: a folder of images against a reference, as the document of result.json.

The numbers come with the protocol that they depend on; how a number is computed is in metrics.py.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from smidgen.data.cache import default_cache_dir
from smidgen.data.folder import ImageFolder, Progress, scan
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.features import Extractor, load_extractor
from smidgen.evaluation.metrics import class_agreement, frechet_distance
from smidgen.evaluation.reference import (
    Statistics,
    compute_statistics,
    folder_statistics,
    read_statistics,
)

SAMPLE_RECORD = "sample.json"  # written by sampling: {"settings": {...}, "images": {file: class}}


def evaluate(
    images: str | Path,
    reference: str | Path,
    *,
    features: str = "glyphs",
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Frechet distance and class agreement of a folder, with protocol, baselines and warnings.

    `reference` is a folder of images, whose statistics are cached, or a .npz with `mu` and `sigma`.
    Class agreement needs to know what each image was meant to show: the name of its sub-folder, the
    sampling record beside it, or a file name such as 000123-alpha.png; else it is None.

    Raises: UsageError for unknown features or a missing path, SmidgenError for unusable content.
    """
    folder, reference = Path(images), Path(reference)
    for path in (folder, reference):
        if not path.exists():
            raise UsageError(f"no such file or folder: {path}")
    extractor = load_extractor(features, device)
    known = _reference_statistics(reference, extractor, batch_size, cache_dir, progress)
    scanned = scan(folder)
    measured = compute_statistics(scanned, extractor, batch_size=batch_size, progress=progress)
    record = read_sample_record(scanned.root)
    warnings = _size_warnings(measured, known, extractor)
    fd = frechet_distance(
        measured.gaussian.mean,
        measured.gaussian.covariance,
        known.gaussian.mean,
        known.gaussian.covariance,
    )
    agreement = _agreement(scanned, measured, known, extractor, record, warnings)
    if not record.get("finished", True):
        warnings.append(f"the sampling into {folder} did not finish; run it again first")
    if scanned.num_bad:
        warnings.append(f"{scanned.num_bad} of the files in {folder} were skipped")
    return {
        "metrics": {"fd": fd, "class_agreement": agreement.pop("class_agreement")},
        **agreement,
        "protocol": _protocol(scanned, measured, known, extractor, reference, record),
        "skipped": scanned.skipped(),
        "warnings": warnings,
    }


def _reference_statistics(
    reference: Path,
    extractor: Extractor,
    batch_size: int,
    cache_dir: Path | None,
    progress: Progress | None,
) -> Statistics:
    if reference.is_file():
        if reference.suffix != ".npz":
            raise UsageError(f"the reference {reference} is neither a folder nor a .npz file")
        return read_statistics(reference, extractor)
    return folder_statistics(
        reference,
        extractor,
        batch_size=batch_size,
        cache_dir=cache_dir or default_cache_dir(),
        progress=progress,
    )


def read_sample_record(folder: Path) -> dict[str, Any]:
    """What sampling wrote beside its images, or {} where it did not.

    Raises: SmidgenError if the record is damaged.
    """
    path = folder / SAMPLE_RECORD
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SmidgenError(f"{path} is damaged: {error}; sample again or remove it") from error


def intended_classes(folder: ImageFolder, record: Mapping[str, Any]) -> list[str] | None:
    """The class that each file was meant to show, None if any is unknown."""
    if not folder.flat:
        return [folder.classes[file.label] for file in folder.files]
    listed = record.get("images", {})
    found = []
    for file in folder.files:
        match = re.fullmatch(r"\d+-(.+)", file.path.stem)
        name = listed.get(file.path.name) or (match[1] if match else None)
        if name is None:
            return None
        found.append(name)
    return found


def _agreement(
    folder: ImageFolder,
    measured: Statistics,
    known: Statistics,
    extractor: Extractor,
    record: Mapping[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """Class agreement with its baselines and by class; a warning and None where it has no sense."""
    intended = intended_classes(folder, record)
    if intended is None:
        warnings.append("class agreement unknown: nothing says what each image was meant to show")
        return {"class_agreement": None}
    head = extractor.head_for(set(intended))
    if head is None:
        warnings.append(f'class agreement unknown: "{extractor.name}" has no head for the classes')
        return {"class_agreement": None}
    index = {name: number for number, name in enumerate(extractor.heads[head])}
    labels = torch.tensor([index[name] for name in intended])
    predicted = measured.predictions[head]
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
    if head not in known.predictions or not set(known.classes) <= set(index):
        return None
    names = torch.tensor([index[name] for name in known.classes])
    return class_agreement(known.predictions[head], names[known.labels])


def _size_warnings(measured: Statistics, known: Statistics, extractor: Extractor) -> list[str]:
    warnings = []
    for what, count in (("images", measured.gaussian.count), ("reference", known.gaussian.count)):
        if 0 < count <= extractor.dim:
            warnings.append(
                f"{count} {what} for {extractor.dim} feature dimensions: the covariance is "
                "singular and the distance is too large; compare it only at this number"
            )
    return warnings


def _protocol(
    folder: ImageFolder,
    measured: Statistics,
    known: Statistics,
    extractor: Extractor,
    reference: Path,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    return {
        "features": extractor.name,
        "features_sha256": extractor.sha256,
        "feature_dimensions": extractor.dim,
        "image_size": extractor.image_size,
        "resize": f"{extractor.resize}, antialiased bicubic",
        "covariance_divisor": "N - 1",
        "num_images": measured.gaussian.count,
        "num_reference": known.gaussian.count or None,
        "images": str(folder.root),
        "images_identity": measured.identity,
        "reference": str(reference),
        "reference_identity": known.identity,
        "sampling": record.get("settings"),
        "versions": {name: _version(name) for name in ("smidgen", "torch", "pillow", "numpy")},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from the source tree
        return None
