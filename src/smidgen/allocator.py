"""Memory of this process on a CPU (docs/decisions/0030-freed-memory-is-kept.md)."""

from __future__ import annotations

import ctypes
import os
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
KEPT = 2**31 - 1  # bytes that are free at most before some go back to the system
LARGE, LARGE_BEFORE = 2**30, 2**25  # above it memory is always given back; before glibc 2.35


@cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of what it frees, so that the next step finds it; whether
    it does from now on.

    The C library of most Linux systems gives large tensors back to the system when they are freed,
    and the system clears each page of them before it gives it again: a fifth of a step on a CPU. It
    stays as it is where the environment says something of it, and elsewhere than with glibc.
    """
    asked = any(name.startswith("MALLOC_") for name in os.environ)
    if asked or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or not _has_glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    large = mallopt(M_MMAP_THRESHOLD, LARGE) or mallopt(M_MMAP_THRESHOLD, LARGE_BEFORE)
    return bool(large and mallopt(M_TRIM_THRESHOLD, KEPT))


def _has_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):  # Windows; no such name; no such value
        return False
