"""Feature statistics of images: of a folder, cached under a content key, or in a .npz.

The key covers every file's bytes and name, the extractor's weights and its preprocessing, so that
a stale entry is never used. Sub-folders are the classes. No metric lives here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smidgen.data.cache import default_cache_dir
from smidgen.data.folder import ImageFolder, Progress, scan
from smidgen.data.images import load_image
from smidgen.data.reading import ordered_map
from smidgen.errors import SmidgenError
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.metrics import Gaussian, GaussianSum

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What evaluation needs to know about an image set.

    `predictions` holds, for each head of the extractor, the class index it sees in each image;
    `labels` each image's class as an index into `classes`. Both are empty where not known, as in
    a .npz of somebody else. `identity` names the content: the key of a folder, the hash of a file.
    """

    gaussian: Gaussian
    classes: tuple[str, ...]
    labels: Tensor
    predictions: dict[str, Tensor]
    extractor: str
    identity: str


def compute_statistics(
    images: ImageFolder,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Statistics:
    """The statistics of a scanned folder, read in batches.

    Raises: SmidgenError if a feature is not finite.
    """
    total = GaussianSum(extractor.dim)
    predictions: dict[str, list[Tensor]] = {head: [] for head in extractor.heads}
    for batch in _batches(images, extractor, batch_size):
        features, logits = extractor.read(batch)
        if not torch.isfinite(features).all():
            raise SmidgenError(f'features "{extractor.name}" of {images.root} are not finite')
        total.update(features)
        for head, values in logits.items():
            predictions[head].append(values.argmax(dim=1).cpu())
        if progress:
            progress(total.count, len(images.files))
    return Statistics(
        gaussian=total.result(),
        classes=images.classes,
        labels=torch.tensor(images.labels),
        predictions={head: torch.cat(parts) for head, parts in predictions.items()},
        extractor=extractor.sha256,
        identity=content_key(images, extractor),
    )


def _batches(images: ImageFolder, extractor: Extractor, batch_size: int) -> Iterator[Tensor]:
    paths = [file.path for file in images.files]
    pixels = ordered_map(
        lambda path: load_image(path, extractor.image_size, extractor.resize)[0], paths
    )
    while batch := list(itertools.islice(pixels, batch_size)):
        yield torch.stack(batch)  # (B, 3, H, W) uint8


def folder_statistics(
    folder: Path,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """The statistics of a folder, from the cache if exactly these images were read before.

    Raises: SmidgenError if there is no such folder, or no usable image in it or in a class.
    """
    key = content_key(scan(folder, decode=False), extractor)
    path = (cache_dir or default_cache_dir()) / "statistics" / f"{key}.npz"
    if path.is_file():
        try:
            return read_statistics(path, extractor, identity=key)
        except SmidgenError:
            path.unlink(missing_ok=True)  # damaged: computed anew below
    images = scan(folder)
    statistics = compute_statistics(images, extractor, batch_size=batch_size, progress=progress)
    statistics = dataclasses.replace(statistics, identity=key)
    write_statistics(statistics, path)
    return statistics


def content_key(images: ImageFolder, extractor: Extractor) -> str:
    """A hash of the files' bytes and names, the extractor and how it resizes."""
    total = hashlib.sha256()
    total.update(f"{FORMAT_VERSION}/{extractor.sha256}/{extractor.resize}".encode())
    total.update(f"/{extractor.image_size}/{images.classes}".encode())
    contents = ordered_map(_hash, [file.path for file in images.files])
    for file, content in zip(images.files, contents, strict=True):
        total.update(f"\n{images.name(file.path)}/{file.label}/{content}".encode())
    return total.hexdigest()[:32]


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_statistics(statistics: Statistics, path: Path) -> None:
    """Write a .npz: `mu` and `sigma` as everywhere, the rest under names of our own; atomic."""
    meta = {
        "format_version": FORMAT_VERSION,
        "count": statistics.gaussian.count,
        "classes": list(statistics.classes),
        "extractor": statistics.extractor,
        "identity": statistics.identity,
    }
    arrays = {
        "mu": statistics.gaussian.mean.numpy(),
        "sigma": statistics.gaussian.covariance.numpy(),
        "labels": statistics.labels.numpy().astype(np.int32),
        **{f"predicted/{k}": v.numpy().astype(np.int32) for k, v in statistics.predictions.items()},
        "meta": np.array(json.dumps(meta)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_statistics(path: Path, extractor: Extractor, *, identity: str | None = None) -> Statistics:
    """Read a .npz with `mu` and `sigma`, ours or another program's.

    Raises: SmidgenError if the file cannot be read, lacks an array, or belongs to other features.
    """
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop("meta", "{}")))
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise SmidgenError(f"{path} is not a readable .npz of statistics: {error}") from error
    if "mu" not in arrays or "sigma" not in arrays:
        raise SmidgenError(f'{path} lacks "mu" or "sigma"; it has: {", ".join(arrays)}')
    _check_features(path, arrays, meta, extractor)
    predicted = {
        name.removeprefix("predicted/"): torch.from_numpy(values).long()
        for name, values in arrays.items()
        if name.startswith("predicted/")
    }
    return Statistics(
        gaussian=Gaussian(
            mean=torch.from_numpy(arrays["mu"]).double(),
            covariance=torch.from_numpy(arrays["sigma"]).double(),
            count=int(meta.get("count", 0)),
        ),
        classes=tuple(meta.get("classes", ())),
        labels=torch.from_numpy(arrays.get("labels", np.zeros(0, np.int32))).long(),
        predictions=predicted,
        extractor=meta.get("extractor", ""),
        identity=identity or f"sha256:{hashlib.sha256(content).hexdigest()[:32]}",
    )


def _check_features(path: Path, arrays: dict, meta: dict, extractor: Extractor) -> None:
    """Raise SmidgenError unless the arrays are finite and of this extractor."""
    dim = extractor.dim
    if arrays["mu"].shape != (dim,) or arrays["sigma"].shape != (dim, dim):
        raise SmidgenError(
            f"{path} holds statistics of {arrays['mu'].shape[-1:]} dimensions; "
            f'the features "{extractor.name}" have {dim}'
        )
    for name in ("mu", "sigma"):
        if arrays[name].dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
            raise SmidgenError(f'"{name}" in {path} is not made of finite numbers')
    if meta.get("extractor", extractor.sha256) != extractor.sha256:
        raise SmidgenError(
            f'{path} was computed with other features than "{extractor.name}"; '
            "compute it again from its images"
        )
