"""The latent cache: every image is encoded once, whatever is run again, moved or added.

An image is found by the SHA-256 of its bytes in the folder of its transform and codec;
a changed file therefore has no entry, and only it is encoded again. See shards.py for the files.
"""

import threading
import time
from pathlib import Path
from typing import Any

from smidgen.data.encoding import Encoder, Picture, encode_rows
from smidgen.data.shards import (
    Row,
    Shard,
    check_writable,
    discard,
    dtype_of,
    open_shards,
    write_shard,
)

# A shard ends with the batch that reaches one of these; a killed run loses no more than that.
SHARD_IMAGES = 1024
SHARD_BYTES = 64 * 2**20
SHARD_SECONDS = 30.0


class LatentCache:
    """The cached latents of one transform and codec."""

    def __init__(self, directory: Path, spec: dict[str, Any]) -> None:
        self.directory = directory
        self.spec = spec
        self._lock = threading.Lock()
        self._shards = open_shards(directory, spec)
        self._index: dict[str, tuple[Shard, int]] = {}
        self._reindex()

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

    def place(self, content: str) -> tuple[Shard, int]:
        """The shard and row of content that was found or added before."""
        return self._index[content]

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


class Batches:
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
        rows = encode_rows(
            self._codec,
            waiting,
            batch_size=batch_size,
            flip=flip,
            dtype=dtype_of(self._cache.spec),
        )
        self._rows.update((row.content, row) for row in rows)
        self.num_encoded += len(waiting)
        self._waiting = {}
        num_bytes = 2 * rows[0].mean.nbytes * len(self._rows)
        late = time.monotonic() - self._last_write > SHARD_SECONDS
        if len(self._rows) >= SHARD_IMAGES or num_bytes >= SHARD_BYTES or late:
            self._write()

    def _write(self) -> None:
        if self._rows:
            self._cache.add(list(self._rows.values()))
            self._rows = {}
            self._last_write = time.monotonic()
