"""Notebooks as pages: their text and code."""

import json
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def markdown_of(path: Path) -> str:
    """The notebook's cells; it holds no outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(_part(cell["cell_type"], "".join(cell["source"])) for cell in cells)


def _part(kind: str, source: str) -> str:
    return source if kind == "markdown" else f"```python\n{source}\n```"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """A page for each notebook, in its place."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        place = file.src_uri.removesuffix(".ipynb") + ".md"
        text = markdown_of(Path(str(file.abs_src_path)))
        files.append(File.generated(config, place, content=text))
