"""From the bytes of one image file to upright RGB pixels at the training size, or why not.

Only Pillow and numpy decode. ICC profiles are ignored, as in the released models' training code.
"""

import contextlib
import dataclasses
import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError

from smidgen.data.formats import FORMATS, RAW, SNIFFED_BYTES, UNSUPPORTED, sniff
from smidgen.errors import SmidgenError
from smidgen.files import reading
from smidgen.sizes import ImageSize

Mode = Literal["crop", "resize"]

# Part of every cache key: raise it with any change to the pixels that `decode` or `fit` return.
TRANSFORM_VERSION = 1

MAX_FILE_BYTES = 2**30

# EXIF orientation (TIFF tag 0x0112) -> what makes the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PILLOW_LOCK = threading.RLock()


class UnusableImage(SmidgenError):
    """One file cannot be used; the message is `kind: detail`, with one or two words of kind."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind = kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What must be known of a decoded file to judge it again without decoding it.

    `width` and `height` are those of the upright picture; `format` is Pillow's name.
    """

    format: str
    width: int
    height: int

    def check(self, path: Path, min_size: int) -> None:
        """Raises UnusableImage for a camera's own file and a side under `min_size`."""
        if self.format == "TIFF" and path.suffix.lower() in RAW:
            raise UnusableImage("unsupported", f"{path.suffix} is not read; convert it to PNG")
        if min(self.width, self.height) < min_size:
            size = f"{self.width} x {self.height} pixels"
            raise UnusableImage("tiny", f"{size}, at least {min_size} a side are needed")

    def has_other_suffix(self, path: Path) -> bool:
        """Whether the name speaks of something else than the content; one without a suffix says
        nothing.
        """
        return bool(path.suffix) and FORMATS.get(path.suffix.lower()) != self.format

    def enlarged(self, size: ImageSize) -> bool:
        """Whether either mode must enlarge a side to reach this size."""
        return self.width < size.width or self.height < size.height


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Inside, Pillow refuses truncated files and says nothing: every finding becomes a reason.

    The two settings are global in Pillow and Python and are given back on leaving; hence the lock,
    which makes a second scan in the same process wait for the first.
    """
    with _PILLOW_LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        Image.init()
        lenient = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def read_bytes(path: Path) -> bytes:
    """The file's bytes, read once so that what is hashed is what is decoded.

    Raises: UnusableImage if it vanished, may not be read, is no ordinary file (a pipe is never
        opened), is empty or is larger than 1 GiB.
    """
    try:
        data = reading.read_bytes(path, MAX_FILE_BYTES)
    except reading.Unreadable as error:
        raise UnusableImage("unreadable", error.reason) from error
    if not data:
        raise UnusableImage("unreadable", "empty file")
    return data


def content_key(data: bytes) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, path: Path, min_size: int = 8) -> tuple[Image.Image, Facts]:
    """The upright RGB picture in `data`, every pixel decoded; `path` gives only its name.

    Alpha is composited on white; 16-bit values are divided by 257.

    Raises: UnusableImage if it is no image, or an unsupported, animated, truncated, tiny, too large
        or damaged one.
    """
    try:
        return _decode(data, path, min_size)
    except UnusableImage:
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(data, path) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImage("too large", f"over {Image.MAX_IMAGE_PIXELS} pixels") from error
    # Pillow's plugins answer damaged files with nearly any exception; none may end the run.
    except Exception as error:
        kind = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise UnusableImage(kind, str(error) or type(error).__name__) from error


def _decode(data: bytes, path: Path, min_size: int) -> tuple[Image.Image, Facts]:
    readable = [name for name in (*FORMATS.values(), "MPO") if name in Image.OPEN] or None
    with Image.open(io.BytesIO(data), formats=readable) as image:
        # MPO is a camera's JPEG with a second picture behind it (a preview): the first counts.
        name = "JPEG" if image.format == "MPO" else str(image.format)
        _check_container(image, name, data)
        image.load()
        upright = to_rgb(_orient(image))
    facts = Facts(format=name, width=upright.width, height=upright.height)
    facts.check(path, min_size)
    return upright, facts


def _check_container(image: Image.Image, name: str, data: bytes) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UnusableImage("too large", f"{image.width} x {image.height} pixels, over {limit}")
    num_frames = getattr(image, "n_frames", 1) if image.format != "MPO" else 1
    if num_frames > 1:
        raise UnusableImage("animated", f"{num_frames} frames or pages")
    # Pillow accepts a PNG whose last bytes are missing once the last row could be decoded.
    if name == "PNG" and _PNG_END not in data:
        raise UnusableImage("truncated", "the end of the PNG file is missing")


_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _unidentified(data: bytes, path: Path) -> UnusableImage:
    suffix, found = path.suffix.lower(), sniff(data[:SNIFFED_BYTES])
    if suffix in UNSUPPORTED or (found is not None and found not in FORMATS.values()):
        return UnusableImage("unsupported", f"{found or suffix} is not read; convert it to PNG")
    if found is not None:
        return UnusableImage("unreadable", f"damaged {found} data")
    return UnusableImage("unreadable", "not an image, or its beginning is damaged")


def _orient(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(0x0112)
    # Damaged EXIF says nothing about the pixels: the picture is taken as it is stored.
    except Exception:
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of any of Pillow's modes, alpha composited on white.

    Raises: UnusableImage for 32-bit pixels whose range is neither 0..65535 (integers) nor 0..1
        (floats).
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_eight_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(values: NDArray) -> NDArray[np.uint8]:
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (values.min() >= 0 and values.max() <= top):
        raise UnusableImage("unsupported", f"{values.dtype} pixels outside 0..{top:g}")
    return np.rint(values.astype(np.float64) * (255.0 / top)).astype(np.uint8)


def fit(image: Image.Image, size: ImageSize, mode: Mode) -> NDArray[np.uint8]:
    """(3, H, W) pixels of an RGB image at this size: the largest part of its shape in the centre
    (`crop`), or all of it (`resize`).

    One antialiased bicubic resampling of whole source pixels; none where the size already fits.
    """
    box = (0, 0, image.width, image.height)
    if mode == "crop":
        box = crop_box(image.width, image.height, size)
    resized = image.resize(size, Image.Resampling.BICUBIC, box=box)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def crop_box(width: int, height: int, size: ImageSize) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest part of a picture that has the shape of `size`, to
    whole pixels.
    """
    if width * size.height > height * size.width:
        wide, high = max(1, round(height * size.width / size.height)), height
    else:
        wide, high = width, max(1, round(width * size.height / size.width))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def placement(facts: Facts, size: ImageSize, mode: Mode) -> tuple[int, ...]:
    """What SDXL is told of an image that `fit` made (Podell et al. 2023, arXiv 2307.01952, section
    2.2): height and width of the picture, top and left of the crop in pixels of the image, height
    and width of the image.
    """
    left = top = 0
    if mode == "crop":
        x, y, right, bottom = crop_box(facts.width, facts.height, size)
        left = round(x * size.width / (right - x))
        top = round(y * size.height / (bottom - y))
    return facts.height, facts.width, top, left, size.height, size.width
