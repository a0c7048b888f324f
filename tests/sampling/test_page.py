"""The page of a folder of samples: every image once, in its row; nothing from outside."""

from html.parser import HTMLParser

import pytest
from PIL import Image

from smidgen.errors import SmidgenError
from smidgen.files.writing import write_png
from smidgen.sampling.folder import SampleRecord, image_name
from smidgen.sampling.page import write_page

PROMPTS = ('<script>alert("x")</script>', "an owl & a fox")


class Read(HTMLParser):
    """The tags with their attributes, and the texts of headings."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.headings, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "h2"

    def handle_data(self, data):
        if self._inside:
            self.headings.append(data)
            self._inside = False

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def folder(tmp_path):
    images = {image_name(n, PROMPTS[n % 2]): PROMPTS[n % 2] for n in range(6)}
    for number, file in enumerate(images):
        write_png(Image.new("RGB", (32, 16), (40 * number, 0, 0)), tmp_path / file)
    return tmp_path, SampleRecord(settings={"steps": 3, "base": "<i>"}, images=images)


def test_a_page_has_every_image_once_in_the_row_of_its_prompt(folder):
    path = write_page(folder[1], folder[0])
    read = Read(path.read_text(encoding="utf-8"))
    assert read.headings == [*PROMPTS, "Settings"]
    assert [one["alt"] for one in read.of("img")] == [
        f"image {n}: {PROMPTS[n % 2]}" for n in (0, 2, 4, 1, 3, 5)
    ]
    assert len({one["src"] for one in read.of("img")}) == 6
    assert not read.of("script")
    assert not read.of("i")
    ids = [one["id"] for _, one in read.tags if "id" in one]
    assert len(ids) == len(set(ids))
    assert {one["href"].removeprefix("#") for one in read.of("a")} <= set(ids)


def test_a_page_asks_for_nothing_from_outside(folder):
    read = Read(write_page(folder[1], folder[0]).read_text(encoding="utf-8"))
    addresses = [one[key] for _, one in read.tags for key in ("src", "href") if key in one]
    assert all(one.startswith(("data:image/png;base64,", "#")) for one in addresses)
    assert "link" not in {tag for tag, _ in read.tags}


def test_an_image_that_is_gone_is_told(folder):
    (folder[0] / next(iter(folder[1].images))).unlink()
    with pytest.raises(SmidgenError, match="cannot be read; sample with --force"):
        write_page(folder[1], folder[0])


@pytest.mark.slow
def test_on_a_phone_and_by_keyboard_a_picture_opens_and_closes(folder, browser):
    """Tab by Tab to the first picture; Enter shows it alone, and the next link goes back."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    asked = []
    page.on("request", lambda one: asked.append(one.url))
    page.goto(write_page(folder[1], folder[0]).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for _ in range(9):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "image-0":
            break
    page.keyboard.press("Enter")
    picture = page.locator("#image-0 img")
    assert picture.bounding_box()["width"] > 300
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert picture.bounding_box()["width"] < 200
    colours = [page.evaluate("getComputedStyle(document.body).backgroundColor")]
    page.emulate_media(color_scheme="dark")
    colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    assert all(url.startswith(("file:", "data:")) for url in asked)
    page.close()
