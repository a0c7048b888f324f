"""What evaluation keeps of an image set, and the .npz that holds it.

`mu` and `sigma` stand under the names that everybody uses; the rest is ours and may be missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.metrics import Gaussian
from smidgen.evaluation.sample_batches import ARRAY, DAMAGED, file_identity, unreadable
from smidgen.files.writing import whole_file

FORMAT_VERSION = 2
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What evaluation needs to know about a reference.

    `predictions` holds, for each head of the extractor, the class index it sees in each image;
    `labels` each image's class as an index into `classes`. Both are empty where not known, as in a
    .npz of somebody else, and `classes` for images without classes. `mean_direction` (D) is the
    mean of the normalised features, `features` (N, D) they themselves; None where not known.
    `identity` names the content. `num_skipped` files could not be used.
    """

    gaussian: Gaussian
    classes: tuple[str, ...]
    labels: Tensor
    predictions: dict[str, Tensor]
    extractor: str
    resize: str
    identity: str
    mean_direction: Tensor | None = None
    features: Tensor | None = None
    num_skipped: int = 0


def write_statistics(statistics: Statistics, path: Path) -> None:
    """Write a .npz, as a whole or not at all: `mu`, `sigma`, and the rest under names of our own.

    Features, where there are any, are in it as `features`; then nothing is compressed.
    """
    arrays: dict[str, Any] = {
        "mu": statistics.gaussian.mean.numpy(),
        "sigma": statistics.gaussian.covariance.numpy(),
        "labels": statistics.labels.numpy().astype(np.int32),
        **{f"predicted/{k}": v.numpy().astype(np.int32) for k, v in statistics.predictions.items()},
        "meta": np.array(json.dumps(_meta(statistics))),
    }
    save = np.savez_compressed
    if statistics.mean_direction is not None:
        arrays["mean_direction"] = statistics.mean_direction.numpy()
    if statistics.features is not None:
        arrays["features"] = statistics.features.float().numpy()
        save = np.savez
    with whole_file(path) as partial, partial.open("wb") as file:
        save(file, **arrays)


def _meta(statistics: Statistics) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "count": statistics.gaussian.count,
        "classes": list(statistics.classes),
        "extractor": statistics.extractor,
        "resize": statistics.resize,
        "identity": statistics.identity,
        "num_skipped": statistics.num_skipped,
    }


def read_statistics(path: Path, extractor: Extractor, *, features: bool = True) -> Statistics:
    """Read a .npz with `mu` and `sigma`, ours or another program's.

    `features` False leaves an array of that name, (N, D), alone: it is the large one. What another
    program calls `labels` and so on is not looked at.

    Raises: SmidgenError if the file cannot be read, lacks an array, or belongs to other features.
    """
    arrays = _read_arrays(path, skip=() if features else ("features",))
    meta = _read_meta(path, arrays)
    for name in ("mu", "sigma"):
        if name not in arrays:
            raise SmidgenError(f'{path} lacks "{name}"; it has: {", ".join(arrays) or "nothing"}')
    gaussian = _gaussian(path, arrays, extractor, meta.get("count", 0))
    _check_meta(path, meta, extractor)
    if "format_version" not in meta:
        arrays = {name: arrays[name] for name in ("mu", "sigma", "features") if name in arrays}
    direction = arrays.get("mean_direction")
    return Statistics(
        gaussian=gaussian,
        classes=tuple(meta.get("classes", ())),
        labels=torch.from_numpy(arrays.get("labels", np.zeros(0, np.int32))).long(),
        predictions={
            name.removeprefix("predicted/"): torch.from_numpy(values).long()
            for name, values in arrays.items()
            if name.startswith("predicted/")
        },
        extractor=meta.get("extractor", ""),
        resize=meta.get("resize", ""),
        identity=meta.get("identity") or file_identity(path),
        mean_direction=None if direction is None else torch.from_numpy(direction).double(),
        features=_features(path, arrays, extractor),
        num_skipped=int(meta.get("num_skipped", 0)),
    )


def read_gaussian(path: Path, extractor: Extractor, *, count: int) -> Gaussian | None:
    """`mu` and `sigma` of a .npz that holds images too, None without them.

    Raises: SmidgenError if they cannot be read or are of other features.
    """
    arrays = _read_arrays(path, skip=(ARRAY,))
    if "mu" not in arrays or "sigma" not in arrays:
        return None
    return _gaussian(path, arrays, extractor, count)


def _read_arrays(path: Path, skip: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("one array, not an archive")
            return {name: file[name] for name in file.files if name not in skip}
    except DAMAGED as error:
        raise unreadable(path, error) from error


def _read_meta(path: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    try:
        meta = json.loads(str(arrays.pop("meta", "{}")))
    except ValueError as error:
        raise unreadable(path, error) from error
    if not isinstance(meta, dict):
        raise unreadable(path, f'its "meta" is {meta!r}')
    version, count = meta.get("format_version", 0), meta.get("count", 0)
    if not isinstance(version, int) or not isinstance(count, int):
        raise unreadable(path, f"its version is {version!r} and its count {count!r}")
    if version > FORMAT_VERSION:
        raise SmidgenError(
            f"{path} has format version {version} and this smidgen reads up to {FORMAT_VERSION}: "
            "take a newer one, or compute the file again from its images"
        )
    return meta


def _gaussian(path: Path, arrays: Arrays, extractor: Extractor, count: int) -> Gaussian:
    dim = extractor.dim
    mean, covariance = arrays["mu"], arrays["sigma"]
    if mean.shape != (dim,) or covariance.shape != (dim, dim):
        raise SmidgenError(
            f"{path} holds statistics of {mean.shape} and {covariance.shape} numbers; the features "
            f'"{extractor.name}" have {dim} dimensions: give the features that it was made with'
        )
    for name in ("mu", "sigma"):
        if arrays[name].dtype.kind not in "fiu" or not np.isfinite(arrays[name]).all():
            raise SmidgenError(f'"{name}" in {path} is not made of finite numbers')
    if not _is_covariance(covariance):
        raise SmidgenError(
            f'"sigma" in {path} is no covariance (not symmetric, or with a negative variance): '
            "compute it again from its images"
        )
    return Gaussian(
        mean=torch.from_numpy(mean).double(),
        covariance=torch.from_numpy(covariance).double(),
        count=count,
    )


def _is_covariance(matrix: np.ndarray) -> bool:
    """Symmetric, and no eigenvalue below 0 by more than rounding to float32 explains."""
    size = float(np.abs(matrix).max(initial=0))
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-4 * size):
        return False
    return float(np.linalg.eigvalsh(matrix.astype(np.float64))[0]) >= -1e-3 * size


def _check_meta(path: Path, meta: Mapping[str, Any], extractor: Extractor) -> None:
    """Raise SmidgenError if the file says that it is of other features."""
    if meta.get("extractor", extractor.sha256) != extractor.sha256:
        raise SmidgenError(
            f'{path} was computed with other features than "{extractor.name}", or with other '
            "weights of it; compute it again from its images"
        )
    if (resize := meta.get("resize", extractor.resize)) != extractor.resize:
        raise SmidgenError(
            f'{path} was computed with images resized by "{resize}", not "{extractor.resize}"; '
            f"choose that, or compute it again from its images"
        )


def _features(path: Path, arrays: Arrays, extractor: Extractor) -> Tensor | None:
    if "features" not in arrays:
        return None
    values = arrays["features"]
    if values.ndim != 2 or values.shape[1] != extractor.dim or values.dtype.kind != "f":
        raise SmidgenError(
            f'"features" in {path} is {values.dtype} {values.shape}; '
            f"expected numbers (N, {extractor.dim})"
        )
    return torch.from_numpy(values.astype(np.float32))
