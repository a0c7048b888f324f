"""The latent cache: every image is encoded once, whatever is run again, moved or added.

An image is found by the SHA-256 of its bytes in the folder of its transform and codec;
a changed file therefore has no entry, and only it is encoded again. See shards.py for the files.
"""

import dataclasses
import hashlib
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from smidgen.data.encoding import Encoder, Picture, encode_rows
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
    Mode,
    UnusableImage,
    content_key,
    decode,
    fit,
    strict_pillow,
)
from smidgen.data.latents import LatentSet, MappedRows
from smidgen.data.listing import BadFile
from smidgen.data.reading import ordered_map
from smidgen.data.shards import (
    FORMAT_VERSION,
    Row,
    Shard,
    check_writable,
    discard,
    open_shards,
    write_shard,
)
from smidgen.errors import UsageError
from smidgen.files.places import default_cache_dir
from smidgen.sizes import ImageSize

# A shard ends with the batch that reaches one of these; a killed run loses no more than that.
SHARD_IMAGES = 1024
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 30.0

# Pixels that the codec sees at once: small batches of large images, so that little is padded.
ENCODE_PIXELS = 2**18

# Above this a LatentSet stays memory-mapped.
MEMORY_BYTES = 2**30


def _check_request(
    folder: ImageFolder, image_size: ImageSize, factor: int, mode: str, cache_dir: Path
) -> None:
    if min(image_size) <= 0 or any(side % factor for side in image_size):
        raise UsageError(
            f"image size {image_size}: give a positive multiple of {factor}, "
            "by which the codec shrinks images"
        )
    if mode not in ("crop", "resize"):
        raise UsageError(f'unknown mode "{mode}" for images; choose from: crop, resize')
    if cache_dir.resolve().is_relative_to(folder.root.resolve()):
        raise UsageError(
            f'the cache folder "{cache_dir}" lies in the image folder "{folder.root}", '
            "which is never written to: give another"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    """What one of several processes encodes of the files, and how it waits for the others."""

    files: slice
    wait: Callable[[], None]


class LatentCache:
    """The cached latents of one transform and codec."""

    def __init__(self, directory: Path, spec: dict[str, Any], size: ImageSize) -> None:
        self.directory = directory
        self.spec = spec
        self.size = size
        self._lock = threading.Lock()
        self._shards = open_shards(directory, spec)
        self._index: dict[str, tuple[Shard, int]] = {}
        self._reindex()

    @classmethod
    def build(
        cls,
        folder: ImageFolder,
        codec: Encoder,
        *,
        image_size: ImageSize,
        mode: Mode = "crop",
        flip: bool = False,
        cache_dir: str | Path | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        bad_limit: float = 0.05,
        share: Share | None = None,
    ) -> LatentSet:
        """The latents of every usable file of `folder`, encoding those that the cache lacks.

        `flip` caches the mirror image too. What is stored is float32. Files that vanished or
        changed since the scan are judged as they are now. `batch_size` None: as many images as
        have 2^18 pixels, at most 64. `progress(done, total)` counts files. With `share` several
        processes encode together: each what is its own of the files, then, when `share.wait` has
        waited for the others, all find all.

        Raises: SmidgenError for more bad files than `bad_limit`, a class without a usable image, a
            non-finite latent, or a cache folder that cannot be used; UsageError for a size, mode or
            cache folder that makes no sense.
        """
        cache_dir = Path(cache_dir) if cache_dir is not None else default_cache_dir()
        _check_request(folder, image_size, codec.factor, mode, cache_dir)
        spec = {
            "format": FORMAT_VERSION,
            "transform": TRANSFORM_VERSION,
            "size": image_size.plain,
            "mode": mode,
            "flip": flip,
            "codec": codec.fingerprint,
        }
        key = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]
        batch_size = batch_size or min(64, max(1, ENCODE_PIXELS // image_size.area))
        # The lock inside makes a second build in this process wait and then find everything.
        with strict_pillow():
            place = cache_dir / "latents" / key
            if share is not None:
                cls(place, spec, image_size)._encode(
                    folder, codec, batch_size, share.files, progress
                )
                share.wait()
            cache = cls(place, spec, image_size)
            return cache._fill(folder, _Batches(cache, codec, batch_size), progress, bad_limit)

    def find(self, content: str) -> tuple[Shard, int] | None:
        """The shard and row of a file's content, if it is cached and undamaged. Thread-safe."""
        while (found := self._index.get(content)) is not None:
            shard = found[0]
            if shard.intact():
                return found
            with self._lock:
                if shard in self._shards:
                    discard(shard.path, "its checksum differs")
                    self._shards.remove(shard)
                    self._reindex()
        return None

    def add(self, rows: list[Row]) -> None:
        """Writes rows to the disk and makes them findable."""
        shard = write_shard(self.directory, self.spec, rows)
        with self._lock:
            self._shards.append(shard)
            self._enter(shard)

    def _reindex(self) -> None:
        self._index = {}
        for shard in self._shards:
            self._enter(shard)

    def _enter(self, shard: Shard) -> None:
        for row, content in enumerate(shard.contents):
            self._index.setdefault(content, (shard, row))

    def _reader(self, folder: ImageFolder) -> Callable[[ImageFile], Picture | UnusableImage]:
        size, mode = self.size, self.spec["mode"]

        def read(file: ImageFile) -> Picture | UnusableImage:
            try:
                data = file.read()
                content = content_key(data)
                if (found := self.find(content)) is not None:
                    facts = found[0].facts[found[1]]
                    facts.check(file.path, folder.min_size)
                    return Picture(content, facts, None)
                image, facts = decode(data, file.path, folder.min_size)
                return Picture(content, facts, fit(image, size, mode))
            except UnusableImage as error:
                return error

        return read

    def _encode(
        self,
        folder: ImageFolder,
        codec: Encoder,
        batch_size: int,
        files: slice,
        progress: Progress | None,
    ) -> None:
        """Encodes what the cache lacks of these files; bad ones are for `_fill` to tell."""
        batches, chosen = _Batches(self, codec, batch_size), folder.files[files]
        with closing(ordered_map(self._reader(folder), chosen)) as outcomes:
            for number, (file, found) in enumerate(zip(chosen, outcomes, strict=True), start=1):
                if not isinstance(found, UnusableImage):
                    batches.put(found, folder.name(file.path))
                if progress is not None:
                    progress(number, len(chosen))
        batches.finish()

    def _fill(
        self,
        folder: ImageFolder,
        batches: "_Batches",
        progress: Progress | None,
        bad_limit: float,
    ) -> LatentSet:
        good: list[ImageFile] = []
        pictures: list[Picture] = []
        bad: list[BadFile] = []
        total = len(folder.files) + folder.num_bad
        with closing(ordered_map(self._reader(folder), folder.files)) as outcomes:
            for file, found in zip(folder.files, outcomes, strict=True):
                if isinstance(found, UnusableImage):
                    bad.append(BadFile(path=file.path, reason=str(found)))
                else:
                    good.append(file)
                    pictures.append(found._replace(pixels=None))
                    # Once the run is lost, the rest is read only to name every bad file.
                    if (folder.num_bad + len(bad)) / total <= bad_limit:
                        batches.put(found, folder.name(file.path))
                if progress is not None:
                    progress(len(good) + len(bad), len(folder.files))
        folder = with_findings(folder, good, bad)
        check_bad_share(folder, bad_limit)
        batches.finish()
        return self._latent_set(folder, pictures, batches.num_encoded)

    def _latent_set(
        self, folder: ImageFolder, pictures: list[Picture], num_encoded: int
    ) -> LatentSet:
        places = [self._index[picture.content] for picture in pictures]
        looks = [Look(picture.content, picture.facts) for picture in pictures]
        shards = list(dict.fromkeys(shard for shard, _ in places))
        numbers = {shard: number for number, shard in enumerate(shards)}
        part_of = torch.tensor([numbers[shard] for shard, _ in places])
        row_of = torch.tensor([row for _, row in places])
        mean = MappedRows([shard.mean for shard in shards], part_of, row_of)
        std = MappedRows([shard.std for shard in shards], part_of, row_of)
        small = 2 * 4 * mean.shape.numel() <= MEMORY_BYTES
        return LatentSet(
            mean=mean.to_tensor() if small else mean,
            std=std.to_tensor() if small else std,
            class_numbers=torch.tensor(folder.class_numbers),
            names=tuple(folder.name(file.path) for file in folder.files),
            folder=folder,
            contents=tuple(look.content for look in looks),
            findings=findings_of(folder, looks, self.size),
            num_encoded=num_encoded,
        )


class _Batches:
    """Collects pictures, encodes them in full batches and hands the rows to the cache."""

    def __init__(self, cache: LatentCache, codec: Encoder, batch_size: int) -> None:
        self._cache = cache
        self._codec = codec
        self._batch_size = batch_size
        self._waiting: dict[str, tuple[Picture, str]] = {}
        self._rows: dict[str, Row] = {}
        self._last_write = time.monotonic()
        self.num_encoded = 0

    def put(self, picture: Picture, name: str) -> None:
        """Adds a picture; equal files are encoded once."""
        content = picture.content
        if content in self._waiting or content in self._rows or self._cache.find(content):
            return
        if not self.num_encoded and not self._waiting:
            check_writable(self._cache.directory)
            self._last_write = time.monotonic()
        self._waiting[content] = (picture, name)
        if len(self._waiting) == self._batch_size:
            self._encode()

    def finish(self) -> None:
        """Encodes and writes what is left."""
        if self._waiting:
            self._encode()
        self._write()

    def _encode(self) -> None:
        waiting = list(self._waiting.values())
        flip, batch_size = self._cache.spec["flip"], self._batch_size
        rows = encode_rows(self._codec, waiting, batch_size=batch_size, flip=flip)
        self._rows.update((row.content, row) for row in rows)
        self.num_encoded += len(waiting)
        self._waiting = {}
        num_bytes = 2 * 4 * rows[0].mean.numel() * len(self._rows)
        late = time.monotonic() - self._last_write > SHARD_SECONDS
        if len(self._rows) >= SHARD_IMAGES or num_bytes >= SHARD_BYTES or late:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._cache.add(list(self._rows.values()))
            self._rows = {}
            self._last_write = time.monotonic()
