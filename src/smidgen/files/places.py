"""Where files are kept from one command to the next."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from smidgen.errors import SmidgenError


def default_cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """$SMIDGEN_CACHE, or the platform's folder for caches.

    Raises: SmidgenError if there is no home folder.
    """
    if given := environment.get("SMIDGEN_CACHE"):
        return Path(given)
    xdg = Path(environment.get("XDG_CACHE_HOME", ""))
    # The XDG specification has relative paths ignored.
    if xdg.is_absolute():
        return xdg / "smidgen"
    if sys.platform == "win32" and (local := environment.get("LOCALAPPDATA")):
        return Path(local) / "smidgen" / "cache"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise SmidgenError(
            "there is no home folder for what is cached: set SMIDGEN_CACHE"
        ) from error
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "smidgen"
