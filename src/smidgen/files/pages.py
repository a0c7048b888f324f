"""Self-contained pages of HTML, made of a template that lies in a package: the only user of Jinja2.

Whatever is put into a page is escaped; pictures are in it as addresses that hold them.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment


def rendered(package: str, template: str, values: Mapping[str, Any]) -> str:
    """The page that this template of the package makes of the values."""
    source = files(package).joinpath(template).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(values)


def png_address(path: Path) -> str:
    """An address that holds the PNG at this path. Raises: OSError."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
