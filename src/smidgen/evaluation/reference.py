"""The statistics of reference images: of a data set, cached under a content key, or from a .npz.

The key covers every file's bytes and name, the extractor's weights and its preprocessing, so that
a stale entry is never used. What a file of statistics holds is in statistics.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from smidgen import processes
from smidgen.data.folder import ImageFile, ImageFolder, Progress, with_findings
from smidgen.data.images import UnusableImage
from smidgen.data.layouts import open_images
from smidgen.data.reading import ordered_map
from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation.config import EvaluationConfig
from smidgen.evaluation.features import Extractor
from smidgen.evaluation.metrics import Gaussian
from smidgen.evaluation.sample_batches import SampleBatch, open_sample_batch
from smidgen.evaluation.statistics import (
    FORMAT_VERSION,
    Statistics,
    read_gaussian,
    read_statistics,
    write_statistics,
)
from smidgen.evaluation.stream import Measured, accumulate, array_batches, folder_batches
from smidgen.files.places import default_cache_dir

# Accumulating for this metric keeps the features: what all the metrics that need them share.
KEEPS = frozenset({"fd", "kid"})
SUMS = frozenset({"fd"})


def reference_statistics(
    reference: Path,
    extractors: Sequence[Extractor],
    config: EvaluationConfig,
    *,
    keep_features: Mapping[str, bool],
    progress: Progress | None = None,
) -> dict[str, Statistics]:
    """The statistics of a data set or a .npz for each extractor, what is missing read in one pass.

    `keep_features` says of which extractors the features themselves are wanted too; a file of
    statistics may be without. Of several processes the main one reads, the others its cache.

    Raises: UsageError if `reference` is neither; SmidgenError if it cannot be used.
    """
    cache_dir, layout = config.cache_dir or default_cache_dir(), config.layout
    with processes.main_first():
        if reference.is_file() and layout == "folder":
            if reference.suffix != ".npz":
                raise UsageError(f"the reference {reference} is neither a folder nor a .npz file")
            batch = open_sample_batch(reference)
            if batch is None:
                return {
                    e.name: read_statistics(reference, e, features=keep_features[e.name])
                    for e in extractors
                }
            source = _Source(batch, config.batch_size)
        else:
            images = open_images(reference, layout=layout, split=config.split, decode=False)
            source = _Source(images, config.batch_size)
        return _cached(source, extractors, keep_features, cache_dir, progress)


def folder_statistics(
    folder: Path, extractor: Extractor, *, keep_features: bool = False, **options: Any
) -> Statistics:
    """`reference_statistics` of one extractor; `options`: those of EvaluationConfig."""
    config, keep = EvaluationConfig(**options), {extractor.name: keep_features}
    return reference_statistics(folder, [extractor], config, keep_features=keep)[extractor.name]


class _Source:
    """Reference images to be read: the files of a data set, or the arrays of a sample batch."""

    def __init__(self, images: ImageFolder | SampleBatch, batch_size: int) -> None:
        self.images = images
        self.batch_size = batch_size
        self.hashes: list[str] | None = None

    def key(self, extractor: Extractor) -> str:
        """The name under which statistics of these images are kept."""
        if isinstance(self.images, SampleBatch):
            parts = (self.images.identity, extractor.sha256, extractor.resize, FORMAT_VERSION)
            return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:32]
        if self.hashes is None:
            self.hashes = content_hashes(self.images)
        return content_key(self.images, extractor, self.hashes)

    def compute(
        self,
        extractors: Sequence[Extractor],
        keep_features: Mapping[str, bool],
        progress: Progress | None,
    ) -> dict[str, Statistics]:
        """The statistics for each of the extractors, from one pass."""
        wanted = {e.name: KEEPS if keep_features[e.name] else SUMS for e in extractors}
        images = self.images
        if isinstance(images, SampleBatch):
            batches = array_batches(images.batches(self.batch_size), extractors)
            what, total = str(images.path), images.num_images
        else:
            total = len(images.files)
            starts = range(0, total, self.batch_size)
            parts = [range(start, min(start + self.batch_size, total)) for start in starts]
            batches = folder_batches(images, extractors, parts)
            what = f'"{images.root}"'
        found = accumulate(batches, extractors, wanted, what=what, total=total, progress=progress)
        return {e.name: self._statistics(e, found) for e in extractors}

    def _statistics(self, extractor: Extractor, found: Measured) -> Statistics:
        classes, numbers = (), torch.zeros(0, dtype=torch.long)
        num_skipped = 0
        if isinstance(self.images, ImageFolder):
            good = [self.images.files[place] for place in found.numbers]
            checked = with_findings(self.images, good, found.bad)
            num_skipped = checked.num_bad
            if not checked.flat:
                classes, numbers = checked.classes, torch.tensor(checked.class_numbers)
        seen = found.accumulated[extractor.name]
        gaussian = seen.gaussian
        if isinstance(self.images, SampleBatch):
            gaussian = _published(self.images, extractor) or gaussian
        return Statistics(
            gaussian=gaussian,
            classes=classes,
            class_numbers=numbers,
            predictions=seen.predictions,
            extractor=extractor.sha256,
            resize=extractor.resize,
            identity=self.key(extractor),
            mean_direction=seen.mean_direction,
            features=seen.features,
            num_skipped=num_skipped,
        )


def _published(batch: SampleBatch, extractor: Extractor) -> Gaussian | None:
    """The `mu` and `sigma` beside published reference images, if they are of these features.

    ADM's are those of the graph of 2015 with its own resizing (guided-diffusion, evaluator.py), and
    of an unknown number of images: mostly of more than the file holds.
    """
    if (extractor.name, extractor.resize) != ("inception", "legacy"):
        return None
    return read_gaussian(batch.path, extractor, count=0)


def _cached(
    source: _Source,
    extractors: Sequence[Extractor],
    keep_features: Mapping[str, bool],
    cache_dir: Path,
    progress: Progress | None,
) -> dict[str, Statistics]:
    """What the cache has; the rest is computed in one pass and kept there."""
    folder = cache_dir / "statistics"
    found: dict[str, Statistics] = {}
    for extractor in extractors:
        path = folder / f"{source.key(extractor)}.npz"
        if not path.is_file():
            continue
        try:
            known = read_statistics(path, extractor, features=keep_features[extractor.name])
        except SmidgenError:
            path.unlink(missing_ok=True)  # damaged: computed anew below
            continue
        if known.features is not None or not keep_features[extractor.name]:
            found[extractor.name] = known
    missing = [extractor for extractor in extractors if extractor.name not in found]
    if missing:
        computed = source.compute(missing, keep_features, progress)
        for extractor in missing:
            write_statistics(computed[extractor.name], folder / f"{source.key(extractor)}.npz")
        found |= computed
    return {extractor.name: found[extractor.name] for extractor in extractors}


def content_hashes(images: ImageFolder) -> list[str]:
    """SHA-256 of every file's bytes, in order; empty for a file that cannot be read."""

    def content(file: ImageFile) -> str:
        try:
            return hashlib.sha256(file.read()).hexdigest()
        except UnusableImage:
            return ""

    return list(ordered_map(content, images.files))


def content_key(images: ImageFolder, extractor: Extractor, hashes: Sequence[str]) -> str:
    """A hash of the files' bytes and names, the extractor and how it resizes."""
    total = hashlib.sha256()
    total.update(f"{FORMAT_VERSION}/{extractor.sha256}/{extractor.resize}".encode())
    total.update(f"/{extractor.image_size}/{images.classes}".encode())
    for file, content in zip(images.files, hashes, strict=True):
        total.update(f"\n{images.name(file.path)}/{file.class_number}/{content}".encode())
    return total.hexdigest()[:32]
