"""The picture and the mask that a drawing starts from, read and checked before torch loads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smidgen.data.images import UnusableImage, decode, fit, read_bytes, strict_pillow
from smidgen.errors import UsageError
from smidgen.sampling.config import SamplingConfig
from smidgen.sizes import ImageSize

WHITE = 128  # a mask of this or more is drawn anew


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The upright picture, RGB, and the mask, grey and of the same size, None without one."""

    image: Image.Image
    mask: Image.Image | None

    def pixels(self, size: ImageSize) -> NDArray[np.uint8]:
        """(3, H, W) of the picture at this size: the largest part of its shape in the centre."""
        return fit(self.image, size, "crop")

    def masked(self, size: ImageSize) -> NDArray[np.bool_] | None:
        """(H, W), true where it is drawn anew, as `pixels`; None: everywhere."""
        return (
            None if self.mask is None else fit(self.mask.convert("RGB"), size, "crop")[0] >= WHITE
        )

    def factor(self, size: ImageSize) -> int:
        """How many times smaller the picture is than this size.

        Raises: UsageError if it is not smaller by a whole number.
        """
        factor = size.width // self.image.width
        if factor < 2 or (self.image.width * factor, self.image.height * factor) != tuple(size):
            halves = f"{size.width // 2} x {size.height // 2}"
            raise UsageError(
                f"image has {self.image.width} x {self.image.height} pixels, which is no whole "
                f"part of the base's {size.width} x {size.height}; to upscale give one of {halves},"
                " say, or set image_size"
            )
        return factor


def read_pictures(config: SamplingConfig) -> Pictures | None:
    """Those that `config` names; None without an image.

    Raises: UsageError for a file that is no image, or a mask of another size.
    """
    if config.image is None:
        return None
    image = _read("image", config.image)
    if config.mask is None:
        return Pictures(image=image, mask=None)
    mask = _read("mask", config.mask).convert("L")
    if mask.size != image.size:
        raise UsageError(
            f"mask {config.mask} has {mask.width} x {mask.height} pixels and image {config.image} "
            f"{image.width} x {image.height}; give a mask of the image's size"
        )
    return Pictures(image=image, mask=mask)


def _read(name: str, path: Path | str) -> Image.Image:
    try:
        with strict_pillow():
            return decode(read_bytes(Path(path)), Path(path), min_size=1)[0]
    except UnusableImage as error:
        raise UsageError(f"{name} {path} cannot be used: {error}") from error
