"""From pixels to rows of the latent cache: what is asked of a codec, and a batch through it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from smidgen.data.images import Facts
from smidgen.data.shards import Row
from smidgen.errors import SmidgenError
from smidgen.sizes import ImageSize


class Encoder(Protocol):
    """What is needed of a codec: its encoder, which places the images on its own device.

    Codecs with equal fingerprints give equal latents: it covers weights, scaling and precision.
    """

    @property
    def factor(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 images (B, 3, H, W) in [-1, 1] -> scaled mean and std (B, C, h, w)."""
        ...


class Picture(NamedTuple):
    """A usable file: what it is, the size to which it is brought, and its pixels (3, H, W) there
    unless the cache has its latents.
    """

    content: str
    facts: Facts
    size: ImageSize
    pixels: NDArray[np.uint8] | None


def encode_rows(
    codec: Encoder,
    pictures: Sequence[tuple[Picture, str]],
    *,
    batch_size: int,
    flip: bool,
    dtype: torch.dtype = torch.float32,
) -> list[Row]:
    """The posteriors of at most `batch_size` named pictures, mirrored too with `flip`, rounded to
    `dtype`.

    The codec always sees `batch_size` images, the last repeated: kernels are chosen by the size of
    the batch and round differently, and an image's latent must not depend on its neighbours.

    Raises: SmidgenError naming the files if a latent is not finite, or not in `dtype`.
    """
    pixels = [picture.pixels for picture, _ in pictures if picture.pixels is not None]
    pixels += pixels[-1:] * (batch_size - len(pixels))
    images = torch.from_numpy(np.stack(pixels)).float().div(127.5).sub(1)
    views = [images, images.flip(-1)] if flip else [images]
    with torch.no_grad():
        encoded = [codec.encode(view) for view in views]
    # V x (B, C, h, w) -> (B, V, C, h, w)
    mean = torch.stack([m.detach().float().cpu() for m, _ in encoded], dim=1)[: len(pictures)]
    std = torch.stack([s.detach().float().cpu() for _, s in encoded], dim=1)[: len(pictures)]
    if names := _not_finite(pictures, mean, std):
        raise SmidgenError(
            f"the codec gives non-finite latents for {len(names)} of {len(pictures)} images "
            f"({', '.join(names[:5])}): run it in float32 or check its weights"
        )
    mean, std = mean.to(dtype), std.to(dtype)
    if names := _not_finite(pictures, mean, std):
        raise SmidgenError(
            f"the latents of {len(names)} of {len(pictures)} images ({', '.join(names[:5])}) are "
            f"beyond {torch.finfo(dtype).max:,.0f}, the largest number of fp16: give "
            "--cache-precision fp32"
        )
    return [
        Row(content=picture.content, facts=picture.facts, mean=mean[i], std=std[i])
        for i, (picture, _) in enumerate(pictures)
    ]


def _not_finite(
    pictures: Sequence[tuple[Picture, str]], mean: torch.Tensor, std: torch.Tensor
) -> list[str]:
    """The names of the pictures whose latents are not all finite."""
    finite = (mean.isfinite() & std.isfinite()).flatten(1).all(1)
    return [pictures[number][1] for number in (~finite).nonzero().flatten().tolist()]
