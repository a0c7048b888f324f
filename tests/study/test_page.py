"""The report in a real browser: on a phone, by keyboard, in print. Skipped where Chromium is not
installed (.ci/run installs Debian's).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from smidgen.study import report
from smidgen.study.design import read_design

PHONE = {"width": 360, "height": 740}
STUDY = """
output = "{output}"
base = "glyphs"
[study]
seeds = [0, 1, 2]
blocks = ["data"]
[study.factors]
data = ["greek", "hebrew"]
method = ["difffit", "bitfit", "lora"]
"""


def rows_of(design) -> list[dict]:
    """Results as runs leave them, without runs."""
    found = []
    for cell in design.cells():
        for seed in design.table.seeds:
            value = 3.0 + len(cell["method"]) + 0.1 * seed + (cell["data"] == "greek")
            more = {"trainable": 1000 * len(cell["method"]), "total": 10**6, "seconds": 60.0 + seed}
            found.append({**cell, "seed": seed, "state": "finished", "fd": value, **more})
    return found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A report of made-up numbers."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "study.toml").write_text(STUDY.format(output=folder / "study"))
    design = read_design(folder / "study.toml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "rows_of", rows_of)
        patch.setattr("smidgen.study.analysis.rows_of", rows_of)
        return report.write_report(design)


@pytest.fixture
def phone(browser, page_file) -> Iterator:
    page = browser.new_page(viewport=PHONE)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda one: one.url.startswith(("file:", "data:")) or errors.append(one.url))
    page.goto(page_file.as_uri())
    yield page
    assert errors == []  # nothing is fetched, nothing fails
    page.close()


@pytest.mark.slow
def test_on_a_phone_the_page_is_no_wider_than_the_screen_and_tables_scroll(phone):
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    wide = phone.locator(".wide").first
    assert wide.evaluate("one => one.scrollWidth > one.clientWidth")
    small = phone.evaluate(
        "[...document.querySelectorAll('body *')].filter(one => one.textContent.trim() && "
        "!one.closest('svg') && parseFloat(getComputedStyle(one).fontSize) < 12).length"
    )
    assert small == 0


@pytest.mark.slow
def test_by_keyboard_one_comes_to_the_numbers_and_through_every_table(phone):
    phone.keyboard.press("Tab")
    assert phone.evaluate("document.activeElement.className") == "skip"
    reached = []
    for _ in range(phone.locator(".wide").count()):
        phone.keyboard.press("Tab")
        reached.append(phone.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert "fd of each arm" in reached
    assert len(set(reached)) == phone.locator(".wide").count()
    before = phone.locator(".wide").first.evaluate("one => one.scrollLeft")
    phone.locator(".wide").first.focus()
    phone.keyboard.press("ArrowRight")
    phone.wait_for_function(f"document.querySelector('.wide').scrollLeft > {before}")


def test_what_is_drawn_is_told_in_words_too(phone):
    for figure in phone.locator("figure").all():
        assert figure.get_attribute("role") == "img"
        assert figure.get_attribute("aria-label")
    for table in phone.locator("table").all():
        assert table.locator("th[scope=row]").count() >= 1
    assert phone.locator("h1").count() == 1
    assert phone.evaluate("document.documentElement.lang") == "en"


def test_in_print_nothing_is_cut_off(phone):
    phone.emulate_media(media="print")
    phone.set_viewport_size({"width": 794, "height": 1123})  # A4 at 96 dots an inch
    cut = phone.evaluate(
        "[...document.querySelectorAll('.wide')].filter(one => one.scrollWidth > 794).length"
    )
    assert cut == 0
    assert phone.pdf(format="A4")[:5] == b"%PDF-"
