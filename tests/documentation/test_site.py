"""The site builds without a warning, its links lead somewhere, and nothing comes from elsewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import smidgen
from smidgen.cli.main import VERBS
from tests.documentation.pages import ROOT

pytest.importorskip("material", reason="the site's theme is not installed")
pytest.importorskip("mkdocstrings")

pytestmark = pytest.mark.slow  # a site is built


class Links(HTMLParser):
    """What a page links to, what it loads, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.linked: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        if given.get("id"):
            self.anchors.add(given["id"])
        if tag in ("a", "link") and given.get("href"):
            loads = tag == "link" and given.get("rel") not in ("canonical", "prev", "next")
            (self.loaded if loads else self.linked).append(given["href"])
        if given.get("src"):
            self.loaded.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        target = tmp_path_factory.mktemp("site")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(target), strict=True))
    return target


@pytest.fixture(scope="module")
def pages(site):
    """Its pages by their files, but reports of studies, which are pages of their own."""
    found = site.rglob("*.html")
    return {path: Links(path) for path in found if path.name not in ("report.html", "404.html")}


def test_every_link_leads_to_a_file_of_the_site_or_elsewhere(site, pages):
    for page, links in pages.items():
        for link in [*links.linked, *links.loaded]:
            parts = urlsplit(link)
            if parts.scheme or not parts.path:
                continue
            target = (page.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.relative_to(site)}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{page}: {link}"


def test_no_page_loads_anything_from_elsewhere(site, pages):
    for page, links in pages.items():
        outside = [one for one in links.loaded if urlsplit(one).scheme in ("http", "https")]
        assert not outside, page
    for style in site.rglob("*.css"):
        assert not re.findall(r"url\(.?https?:", style.read_text(encoding="utf-8")), style


def test_the_references_have_every_verb_and_every_name(site, pages):
    assert set(VERBS) <= pages[site / "reference/command-line/index.html"].anchors
    names = {f"smidgen.{name}" for name in smidgen.__all__}
    assert names <= pages[site / "reference/python/index.html"].anchors


def test_every_page_of_docs_is_on_the_site(site, pages):
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        place = name.removesuffix("README").removesuffix("/") or "."
        assert site / place / "index.html" in pages


def test_the_first_page_is_the_readme(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert "fine-tunes a pretrained diffusion model by a smidgen of its parameters" in text
