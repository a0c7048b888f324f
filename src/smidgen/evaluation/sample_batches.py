"""Images in a .npz as guided diffusion writes them: `arr_0`, uint8 (N, H, W, 3).

The published reference batches of ADM have this form, with `mu` and `sigma` beside it, and so have
the samples of ADM's and DiT's scripts. Gigabytes are read a batch at a time.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smidgen.errors import SmidgenError
from smidgen.evaluation.arrays import DAMAGED, SUFFIX, read_header, read_headers, unreadable
from smidgen.files.reading import sha256_of

ARRAY = "arr_0"
READ_BYTES = 2**20
MOST_BATCH_BYTES = 2**28  # of the pixels of a batch, whatever its size


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """The images of one file; `identity` is the hash of its bytes."""

    path: Path
    num_images: int
    height: int
    width: int
    identity: str

    def batches(self, batch_size: int) -> Iterator[tuple[int, NDArray[np.uint8], None]]:
        """(number of the first image, uint8 (B, H, W, 3), None: their classes are not known).

        Raises: SmidgenError if the file ends too early.
        """
        shape = (self.height, self.width, 3)
        size = self.height * self.width * 3
        batch_size = max(1, min(batch_size, MOST_BATCH_BYTES // size))
        with zipfile.ZipFile(self.path) as archive, archive.open(ARRAY + SUFFIX) as file:
            read_header(file)
            for first in range(0, self.num_images, batch_size):
                count = min(batch_size, self.num_images - first)
                data = _exactly(file, count * size, self.path)
                yield first, np.frombuffer(data, np.uint8).reshape(count, *shape), None


def open_sample_batch(path: Path) -> SampleBatch | None:
    """The images in a .npz, None if it is one without `arr_0`.

    Raises: SmidgenError if the file is no .npz, is truncated, or its `arr_0` holds no images.
    """
    found = read_headers(path, streamed=[ARRAY]).get(ARRAY)
    if found is None:
        return None
    shape = found.shape
    if (
        found.fortran_order
        or found.dtype != np.uint8
        or len(shape) != 4
        or shape[3] != 3
        or 0 in shape
    ):
        raise SmidgenError(
            f'"{ARRAY}" in {path} is {found}; expected images, uint8 (N, height, width, 3)'
        )
    count, height, width, _ = shape
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise SmidgenError(f"{path} holds images of {width} x {height} pixels, over {limit}")
    return SampleBatch(
        path=path, num_images=count, height=height, width=width, identity=file_identity(path)
    )


def file_identity(path: Path) -> str:
    """What tells one file from another: the hash of its bytes."""
    return f"sha256:{sha256_of(path)[:32]}"


def _exactly(file: IO[bytes], count: int, path: Path) -> bytes:
    parts, missing = [], count
    try:
        while missing:
            part = file.read(min(missing, 64 * READ_BYTES))
            if not part:
                raise EOFError(f"{missing} bytes are missing")
            parts.append(part)
            missing -= len(part)
    except DAMAGED as error:
        raise unreadable(path, error) from error
    return b"".join(parts)
