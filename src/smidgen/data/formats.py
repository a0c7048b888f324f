"""Which files are images: by the suffix of their name, and by their first bytes."""

from __future__ import annotations

import re
from pathlib import PurePath

# What is read, by suffix: Pillow's name of the format.
FORMATS = {
    ".png": "PNG",
    ".apng": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pbm": "PPM",
    ".pnm": "PPM",
    ".avif": "AVIF",
    ".jp2": "JPEG2000",
}

# Cameras' own files, many of which begin like a TIFF, whose one readable picture is a thumbnail.
RAW = (
    *(".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".srf", ".pef"),
    *(".srw", ".orf", ".rw2", ".raf", ".3fr", ".fff", ".erf", ".kdc", ".dcr", ".mef", ".mos"),
    *(".iiq", ".rwl", ".x3f"),
)

# Pictures to a person, but nothing that Pillow alone turns into pixels in a defined way.
UNSUPPORTED = (
    *(".heic", ".heif", ".hif", ".jxl", ".svg", ".psd", ".eps", ".ai", ".tga", ".exr", ".hdr"),
    *RAW,
)

SNIFFED_BYTES = 32

_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG2000",
    b"\xff\x4f\xff\x51\0": "JPEG2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"8BPS\0": "PSD",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF"} | dict.fromkeys(
    (b"heic", b"heix", b"mif1", b"hevc", b"msf1"), "HEIC"
)
# "BM" alone begins many a text; a bitmap's fifteenth byte is the size of a known header.
_BITMAP_HEADERS = frozenset(n.to_bytes(4, "little") for n in (12, 40, 52, 56, 64, 108, 124))
_PORTABLE = re.compile(rb"P[1-6]\s+(#|\d+\s+\d)")  # a map's kind, then a comment or its size


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name is meant as an image."""
    suffix = PurePath(name).suffix.lower()
    return suffix in FORMATS or suffix in UNSUPPORTED


def sniff(head: bytes) -> str | None:
    """The image format that the first SNIFFED_BYTES of a file announce, or None. Some of them
    (HEIC, JPEG XL, PSD) are not read.
    """
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head.startswith(b"BM") and head[14:18] in _BITMAP_HEADERS:
        return "BMP"
    return "PPM" if _PORTABLE.match(head) else None
