"""A folder as latents: every usable file is brought to its size and encoded, or found in the cache.

Pictures of one size are in one folder of the cache (cache.py), whatever run they are of.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from smidgen.data.cache import Batches, LatentCache
from smidgen.data.encoding import Encoder, Picture
from smidgen.data.findings import findings_of
from smidgen.data.folder import (
    ImageFile,
    ImageFolder,
    Look,
    Progress,
    check_bad_share,
    with_findings,
)
from smidgen.data.images import (
    TRANSFORM_VERSION,
    Facts,
    Mode,
    UnusableImage,
    content_key,
    decode,
    fit,
    placement,
    strict_pillow,
)
from smidgen.data.latents import BucketRows, LatentSet, MappedRows
from smidgen.data.listing import BadFile
from smidgen.data.names import CachePrecision
from smidgen.data.reading import ordered_map
from smidgen.data.shards import FORMAT_VERSION
from smidgen.errors import UsageError
from smidgen.files.places import default_cache_dir
from smidgen.sizes import ImageSize, nearest

# Pixels that the codec sees at once: small batches of large images, so that little is padded.
ENCODE_PIXELS = 2**18

# Above this a LatentSet stays memory-mapped.
MEMORY_BYTES = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """What one of several processes encodes of the files, and how it waits for the others."""

    files: slice
    wait: Callable[[], None]


def encode_folder(
    folder: ImageFolder,
    codec: Encoder,
    *,
    sizes: Sequence[ImageSize],
    mode: Mode = "crop",
    flip: bool = False,
    precision: CachePrecision = "fp32",
    cache_dir: str | Path | None = None,
    batch_size: int | None = None,
    progress: Progress | None = None,
    bad_limit: float = 0.05,
    share: Share | None = None,
) -> LatentSet:
    """The latents of every usable file of `folder`, encoding those that the cache lacks.

    Each picture is brought to that of the `sizes` whose shape is nearest to its own. `flip` caches
    the mirror image too. What is stored is float32 or, with `precision` "fp16", rounded to half of
    its bytes. Files that vanished or changed since the scan are judged as they are now.
    `batch_size` None: as many images as have 2^18 pixels, at most 64. `progress(done, total)`
    counts files. With `share` several processes encode together: each what is its own of the files,
    then, when `share.wait` has waited for the others, all find all.

    Raises: SmidgenError for more bad files than `bad_limit`, a class without a usable image, a
        latent that is not finite or that fp16 cannot hold, or a cache folder that cannot be used;
        UsageError for a size, mode or cache folder that makes no sense.
    """
    cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    _check_request(folder, sizes, codec.factor, mode, cache_dir)

    def opened() -> _Encoding:
        places = {}
        for size in sizes:
            spec = {
                "format": FORMAT_VERSION,
                "transform": TRANSFORM_VERSION,
                "size": size.plain,
                "mode": mode,
                "flip": flip,
                "codec": codec.fingerprint,
            }
            if precision != "fp32":
                spec["precision"] = precision
            key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]
            cache = LatentCache(cache_dir / "latents" / key, spec)
            count = batch_size or min(64, max(1, ENCODE_PIXELS // size.area))
            places[size] = (cache, Batches(cache, codec, count))
        return _Encoding(folder, places, mode)

    # The lock inside makes a second build in this process wait and then find everything.
    with strict_pillow():
        if share is not None:
            opened().encode(share.files, progress)
            share.wait()
        return opened().fill(progress, bad_limit)


def _check_request(
    folder: ImageFolder, sizes: Sequence[ImageSize], factor: int, mode: str, cache_dir: Path
) -> None:
    for size in sizes:
        if min(size) <= 0 or any(side % factor for side in size):
            raise UsageError(
                f"image size {size}: give a positive multiple of {factor}, "
                "by which the codec shrinks images"
            )
    if mode not in ("crop", "resize"):
        raise UsageError(f'unknown mode "{mode}" for images; choose from: crop, resize')
    if cache_dir.resolve().is_relative_to(folder.root.resolve()):
        raise UsageError(
            f'the cache folder "{cache_dir}" lies in the image folder "{folder.root}", '
            "which is never written to: give another"
        )


class _Encoding:
    """One pass over the files of a folder, with a cache for each size."""

    def __init__(
        self,
        folder: ImageFolder,
        places: dict[ImageSize, tuple[LatentCache, Batches]],
        mode: Mode,
    ) -> None:
        self._folder = folder
        self._places = places
        self._sizes = tuple(places)
        self._mode: Mode = mode

    def encode(self, files: slice, progress: Progress | None) -> None:
        """Encodes what the caches lack of these files; bad ones are for `fill` to tell."""
        chosen = self._folder.files[files]
        with closing(ordered_map(self._read, chosen)) as outcomes:
            for number, (file, found) in enumerate(zip(chosen, outcomes, strict=True), start=1):
                if not isinstance(found, UnusableImage):
                    self._put(found, file)
                if progress is not None:
                    progress(number, len(chosen))
        self._finish()

    def fill(self, progress: Progress | None, bad_limit: float) -> LatentSet:
        """Encodes what the caches lack, and gives all of it."""
        folder = self._folder
        good: list[ImageFile] = []
        pictures: list[Picture] = []
        bad: list[BadFile] = []
        total = len(folder.files) + folder.num_bad
        with closing(ordered_map(self._read, folder.files)) as outcomes:
            for file, found in zip(folder.files, outcomes, strict=True):
                if isinstance(found, UnusableImage):
                    bad.append(BadFile(path=file.path, reason=str(found)))
                else:
                    good.append(file)
                    pictures.append(found._replace(pixels=None))
                    # Once the run is lost, the rest is read only to name every bad file.
                    if (folder.num_bad + len(bad)) / total <= bad_limit:
                        self._put(found, file)
                if progress is not None:
                    progress(len(good) + len(bad), len(folder.files))
        folder = with_findings(folder, good, bad)
        check_bad_share(folder, bad_limit)
        self._finish()
        return self._latent_set(folder, pictures)

    def _read(self, file: ImageFile) -> Picture | UnusableImage:
        try:
            data = file.read()
            content = content_key(data)
            if (facts := self._known(content)) is not None:
                facts.check(file.path, self._folder.min_size)
                size = nearest(facts.width, facts.height, self._sizes)
                if self._places[size][0].find(content) is not None:
                    return Picture(content, facts, size, None)
            image, facts = decode(data, file.path, self._folder.min_size)
            size = nearest(facts.width, facts.height, self._sizes)
            return Picture(content, facts, size, fit(image, size, self._mode))
        except UnusableImage as error:
            return error

    def _known(self, content: str) -> Facts | None:
        """What any of the caches knows of a file's content, of whatever size."""
        for cache, _ in self._places.values():
            if (found := cache.find(content)) is not None:
                return found[0].facts[found[1]]
        return None

    def _put(self, picture: Picture, file: ImageFile) -> None:
        self._places[picture.size][1].put(picture, self._folder.name(file.path))

    def _finish(self) -> None:
        for _, batches in self._places.values():
            batches.finish()

    def _latent_set(self, folder: ImageFolder, pictures: list[Picture]) -> LatentSet:
        looks = [Look(picture.content, picture.facts) for picture in pictures]
        image_sizes = tuple(picture.size for picture in pictures)
        used = sorted(set(image_sizes), key=self._sizes.index)
        of_bucket = [
            self._rows(size, [one.content for one in pictures if one.size == size]) for size in used
        ]
        small = sum(2 * mean.num_bytes for mean, _ in of_bucket) <= MEMORY_BYTES
        means, stds = (
            [part.to_tensor() if small else part for part in parts]
            for parts in zip(*of_bucket, strict=True)
        )
        bucket_of = torch.tensor([used.index(size) for size in image_sizes])
        return LatentSet(
            mean=BucketRows.of(means, bucket_of),
            std=BucketRows.of(stds, bucket_of),
            class_numbers=torch.tensor(folder.class_numbers),
            names=tuple(folder.name(file.path) for file in folder.files),
            folder=folder,
            contents=tuple(look.content for look in looks),
            findings=findings_of(folder, looks, self._sizes),
            num_encoded=sum(batches.num_encoded for _, batches in self._places.values()),
            image_sizes=image_sizes,
            placements=torch.tensor(
                [placement(one.facts, one.size, self._mode) for one in pictures]
            ),
        )

    def _rows(self, size: ImageSize, contents: list[str]) -> tuple[MappedRows, MappedRows]:
        """Means and deviations of these files in the cache of one size."""
        cache = self._places[size][0]
        places = [cache.place(content) for content in contents]
        shards = list(dict.fromkeys(shard for shard, _ in places))
        numbers = {shard: number for number, shard in enumerate(shards)}
        part_of = torch.tensor([numbers[shard] for shard, _ in places])
        row_of = torch.tensor([row for _, row in places])
        mean = MappedRows([shard.mean for shard in shards], part_of, row_of)
        std = MappedRows([shard.std for shard in shards], part_of, row_of)
        return mean, std
