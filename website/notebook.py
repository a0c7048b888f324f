"""Notebooks as pages: text, code, and what a cell left, in one Markdown file beside them."""

import json
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def markdown_of(path: Path) -> str:
    """The notebook's cells."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell))


def _parts(cell: dict) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f"![What the cell shows](data:image/png;base64,{data['image/png'].strip()})"
        else:
            text = "".join(output.get("text") or data["text/plain"])
            yield f"```text\n{text.rstrip()}\n```"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """A page for each notebook, in its place."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        place = file.src_uri.removesuffix(".ipynb") + ".md"
        text = markdown_of(Path(str(file.abs_src_path)))
        files.append(File.generated(config, place, content=text))
