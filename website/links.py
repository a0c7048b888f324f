"""No link leaves the site: README.md is its first page, and what pages link to outside docs/ comes
along under project/, a folder as a list of its files. On disk every link stays as it is.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FIRST = (ROOT / "README.md", ROOT / "CHANGELOG.md")
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[#)])")
TITLE = re.compile(r"^#+ (.*)", re.MULTILINE)

pages: dict[str, Path] = {}  # of this build: what a page is made of, by its place on the site


def place_of(path: Path) -> str:
    """Where on the site a file or a folder of the repository is."""
    if path == FIRST[0]:
        return "index.md"
    inside = path.is_relative_to(DOCS)
    place = path.relative_to(DOCS) if inside else Path("project") / path.relative_to(ROOT)
    if path.is_dir():
        place /= "index.md"
    return (place.with_suffix(".md") if path.suffix == ".ipynb" else place).as_posix()


def targets(text: str, folder: Path) -> Iterator[tuple[re.Match[str], Path]]:
    """The links of a page in `folder` to what is in the repository."""
    for link in LINK.finditer(text):
        path = Path(os.path.normpath(folder / link[0]))
        if path.is_relative_to(ROOT) and path.exists():
            yield link, path


def text_of(path: Path) -> str:
    """A page as Markdown; of a folder its files, each by its first heading or comment."""
    if path.is_file():
        return path.read_text(encoding="utf-8")
    lines = [f"# {path.name}", ""]
    for file in sorted(path.iterdir()):
        if file.suffix in (".md", ".toml"):
            title = TITLE.search(file.read_text(encoding="utf-8"))
            lines.append(f"- [{file.name}]({file.name}) {title[1] if title else ''}")
    return "\n".join(lines)


def on_config(config: MkDocsConfig) -> None:
    """A folder in the navigation stands for its pages."""
    for section in config.nav or []:
        for title, value in section.items():
            if isinstance(value, str) and (DOCS / value).is_dir():
                files = sorted((DOCS / value).glob("*.md"))
                section[title] = [file.relative_to(DOCS).as_posix() for file in files]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what is linked, and what that links to."""
    pages.clear()
    waiting = [*FIRST, *DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        place = place_of(path)
        is_page = place.endswith(".md")
        if is_page:
            pages[place] = path
            if path.suffix != ".ipynb":
                folder = path if path.is_dir() else path.parent
                found = {target for _, target in targets(text_of(path), folder)} - seen
                waiting += found
                seen |= found
        if files.get_file_from_path(place) is None and path.suffix != ".ipynb":
            if is_page:
                files.append(File.generated(config, place, content=text_of(path)))
            else:
                files.append(File.generated(config, place, abs_src_path=str(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Each link to a file of the repository as one to its place on the site."""
    source = pages.get(page.file.src_uri)
    if source is None:
        return markdown
    here = Path(page.file.src_uri).parent
    parts, end = [], 0
    for link, path in targets(markdown, source if source.is_dir() else source.parent):
        parts += [markdown[end : link.start()], os.path.relpath(place_of(path), here)]
        end = link.end()
    return "".join([*parts, markdown[end:]])
