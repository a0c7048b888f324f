"""What evaluation keeps of an image set, and the .npz that holds it.

`mu` and `sigma` stand under the names that everybody uses; the rest is ours and may be missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smidgen.errors import SmidgenError
from smidgen.evaluation.arrays import Header, read_array, read_headers, unreadable
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.metrics import Gaussian
from smidgen.evaluation.sample_batches import ARRAY, file_identity
from smidgen.files.reading import Unreadable, parse_json
from smidgen.files.toml import toml
from smidgen.files.writing import whole_file

FORMAT_VERSION = 2
REAL, WHOLE = "fiu", "iu"  # numpy's kinds of numbers
Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
    """What evaluation needs to know about a reference.

    `predictions` holds, for each head of the extractor, the class index it sees in each image;
    `class_numbers` each image's class as an index into `classes`. Both are empty where not
    known, as in a .npz of somebody else, and `classes` for images without classes.
    `mean_direction` (D) is the mean of the normalised features, `features` (N, D) they
    themselves; None where not known. `identity` names the content. `num_skipped` files could
    not be used.
    """

    gaussian: Gaussian
    classes: tuple[str, ...]
    class_numbers: Tensor
    predictions: dict[str, Tensor]
    extractor: str
    resize: str
    identity: str
    mean_direction: Tensor | None = None
    features: Tensor | None = None
    num_skipped: int = 0


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing to know of `meta`; 0: it is another program's."""

    format_version: int = 0


class Meta(Version, frozen=True, kw_only=True):
    """What `meta` holds, as JSON; `count` 0: nobody says of how many images."""

    count: Count = 0
    classes: tuple[str, ...] = ()
    extractor: str | None = None
    resize: str | None = None
    identity: str = ""
    num_skipped: Count = 0


def write_statistics(statistics: Statistics, path: Path) -> None:
    """Write a .npz, as a whole or not at all: `mu`, `sigma`, and the rest under names of our own.

    Features, where there are any, are in it as `features`; then nothing is compressed.
    """
    meta = Meta(
        format_version=FORMAT_VERSION,
        count=statistics.gaussian.count,
        classes=statistics.classes,
        extractor=statistics.extractor,
        resize=statistics.resize,
        identity=statistics.identity,
        num_skipped=statistics.num_skipped,
    )
    arrays: dict[str, Any] = {
        "mu": statistics.gaussian.mean.numpy(),
        "sigma": statistics.gaussian.covariance.numpy(),
        "labels": statistics.class_numbers.numpy().astype(np.int32),
        **{f"predicted/{k}": v.numpy().astype(np.int32) for k, v in statistics.predictions.items()},
        "meta": np.array(msgspec.json.encode(meta).decode()),
    }
    save = np.savez_compressed
    if statistics.mean_direction is not None:
        arrays["mean_direction"] = statistics.mean_direction.numpy()
    if statistics.features is not None:
        arrays["features"] = statistics.features.float().numpy()
        save = np.savez
    with whole_file(path) as partial, partial.open("wb") as file:
        save(file, **arrays)


def read_statistics(path: Path, extractor: Extractor, *, features: bool = True) -> Statistics:
    """Read a .npz with `mu` and `sigma`, ours or another program's.

    `features` False leaves an array of that name, (N, D), alone: it is the large one. What another
    program calls `labels` and so on is not looked at.

    Raises: SmidgenError if the file cannot be read, lacks an array, has one of another form or with
        numbers that make no sense, or belongs to other features.
    """
    headers = read_headers(path)
    meta = _read_meta(path, headers)
    for name in ("mu", "sigma"):
        if name not in headers:
            raise SmidgenError(f'{path} lacks "{name}"; it has: {", ".join(headers) or "nothing"}')
    gaussian = _gaussian(path, headers, extractor, meta.count)
    _check_meta(path, meta, extractor)
    ours, dim = meta.format_version > 0, extractor.dim
    direction = None
    if ours and "mean_direction" in headers:
        direction = _finite(path, headers, "mean_direction", (dim,))
    count, kept = meta.count or None, None
    if features and "features" in headers:
        kept = _finite(path, headers, "features", (count, dim), np.float32)
        count = len(kept)
    indices: dict[str, Tensor] = {}
    ranges = {"labels": len(meta.classes)} if meta.classes else {}
    ranges |= {f"predicted/{head}": len(names) for head, names in extractor.heads.items()}
    for name, limit in ranges.items():
        if ours and name in headers:
            indices[name] = _indices(path, headers, name, count, limit)
            count = len(indices[name])
    return Statistics(
        gaussian=gaussian,
        classes=meta.classes if "labels" in indices else (),
        class_numbers=indices.pop("labels", torch.zeros(0, dtype=torch.long)),
        predictions={name.removeprefix("predicted/"): found for name, found in indices.items()},
        extractor=meta.extractor or "",
        resize=meta.resize or "",
        identity=meta.identity or file_identity(path),
        mean_direction=direction,
        features=kept,
        num_skipped=meta.num_skipped,
    )


def read_gaussian(path: Path, extractor: Extractor, *, count: int) -> Gaussian | None:
    """`mu` and `sigma` of a .npz that holds images too, None without them.

    Raises: SmidgenError if they cannot be read or are of other features.
    """
    headers = read_headers(path, streamed=[ARRAY])
    if "mu" not in headers or "sigma" not in headers:
        return None
    return _gaussian(path, headers, extractor, count)


def _read_meta(path: Path, headers: Mapping[str, Header]) -> Meta:
    if "meta" not in headers:
        return Meta()
    text = str(_array(path, headers, "meta", "U", ()))
    try:
        version = parse_json(text, Version).format_version
        if version <= FORMAT_VERSION:
            return parse_json(text, Meta)
    except Unreadable as error:
        raise unreadable(path, f'its "meta": {error.reason}') from error
    raise SmidgenError(
        f"{path} has format version {version} and this smidgen reads up to {FORMAT_VERSION}: "
        "take a newer one, or compute the file again from its images"
    )


def _gaussian(
    path: Path, headers: Mapping[str, Header], extractor: Extractor, count: int
) -> Gaussian:
    dim = extractor.dim
    shapes = headers["mu"].shape, headers["sigma"].shape
    if shapes != ((dim,), (dim, dim)):
        raise SmidgenError(
            f"{path} holds statistics of {shapes[0]} and {shapes[1]} numbers; the features "
            f'"{extractor.name}" have {dim} dimensions: give the features that it was made with'
        )
    mean = _finite(path, headers, "mu", (dim,))
    covariance = _finite(path, headers, "sigma", (dim, dim))
    if not _is_covariance(covariance.numpy()):
        raise SmidgenError(
            f'"sigma" in {path} is no covariance (not symmetric, or with a negative variance): '
            "compute it again from its images"
        )
    return Gaussian(mean=mean, covariance=covariance, count=count)


def _is_covariance(matrix: NDArray[np.float64]) -> bool:
    """Symmetric, and no eigenvalue below 0 by more than rounding to float32 explains."""
    size = float(np.abs(matrix).max(initial=0))
    if not np.allclose(matrix, matrix.T, rtol=0, atol=1e-4 * size):
        return False
    return float(np.linalg.eigvalsh(matrix)[0]) >= -1e-3 * size


def _check_meta(path: Path, meta: Meta, extractor: Extractor) -> None:
    """Raise SmidgenError if the file says that it is of other features."""
    if meta.extractor not in (None, extractor.sha256):
        raise SmidgenError(
            f'{path} was computed with other features than "{extractor.name}", or with other '
            "weights of it; compute it again from its images"
        )
    if meta.resize not in (None, extractor.resize):
        raise SmidgenError(
            f"{path} was computed with images resized by {toml(meta.resize)}, not "
            f'"{extractor.resize}"; choose that, or compute it again from its images'
        )


def _array(
    path: Path, headers: Mapping[str, Header], name: str, kinds: str, shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """The array of that name, if of one of these kinds and this shape (None: any number)."""
    found = headers[name]
    same = len(found.shape) == len(shape) and all(
        wanted in (None, given) for wanted, given in zip(shape, found.shape, strict=False)
    )
    if found.dtype.kind not in kinds or not same:
        what = {"U": "text", WHOLE: "whole numbers"}.get(kinds, "numbers")
        form = ", ".join("N" if wanted is None else str(wanted) for wanted in shape)
        raise SmidgenError(f'"{name}" in {path} is {found}; expected {what} ({form})')
    return read_array(path, name)


def _finite(
    path: Path,
    headers: Mapping[str, Header],
    name: str,
    shape: tuple[int | None, ...],
    dtype: type[np.floating] = np.float64,
) -> Tensor:
    """Numbers within the range of float32, in which features are computed."""
    if headers[name].dtype.kind in REAL:
        values = _array(path, headers, name, REAL, shape)
        most = np.finfo(np.float32).max
        if -most <= values.min(initial=0) and values.max(initial=0) <= most:  # False for NaN
            return torch.from_numpy(values.astype(dtype, copy=False))
    raise SmidgenError(f'"{name}" in {path} is not made of finite numbers')


def _indices(
    path: Path, headers: Mapping[str, Header], name: str, count: int | None, limit: int
) -> Tensor:
    """Whole numbers (`count`) below `limit`."""
    values = _array(path, headers, name, WHOLE, (count,))
    if len(values) and not 0 <= values.min() <= values.max() < limit:
        raise SmidgenError(
            f'"{name}" in {path} holds {values.min()} to {values.max()}; expected 0 to {limit - 1}'
        )
    return torch.from_numpy(values.astype(np.int64))
