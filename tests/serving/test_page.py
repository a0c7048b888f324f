"""The server's page in a real browser. Skipped where Chromium is not installed (.ci/run installs
Debian's).
"""

import base64

import numpy as np
import pytest
from PIL import Image

import smidgen
from tests.serving.serving import listening, write_library
from tests.tiny.bases import tiny_base

PHONE = {"width": 360, "height": 740}
KEY = "a-key-of-sixteen-or-more"


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    found = write_library(tmp_path_factory.mktemp("deltas"), base)
    (found / "greek" / "result.json").write_text('{"metrics": {"fd": 12.5, "kid": {"mean": 1}}}')
    Image.new("RGB", (8, 8), "red").save(found / "greek" / "samples.png")
    (found / "lora.safetensors").rename(found / "<img src=x onerror=alert(1)>.safetensors")
    return found


@pytest.fixture
def page(browser):
    made = browser.new_page(viewport=PHONE)
    errors = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    yield made
    made.close()
    # of an answer with another status than 200 the console says so
    assert [one for one in errors if "Failed to load resource" not in one] == []


def draw(page):
    page.locator("#go").press("Enter")
    page.locator("#pictures a").last.wait_for()
    page.locator("#go:enabled").wait_for()


@pytest.mark.slow
def test_a_delta_is_chosen_and_drawn_by_keyboard_on_a_phone(base, folder, page):
    with listening(base, folder) as address:
        page.goto(address)
        card = page.get_by_role("button", name="greek")
        card.locator("img").wait_for()
        assert "fd: 12.5" in card.inner_text()
        card.press("Enter")
        assert card.get_attribute("aria-pressed") == "true"
        page.fill("#prompt", "elk")
        page.fill("#n", "2")
        page.fill("#steps", "6")
        page.fill("#seed", "7")
        draw(page)
        assert "2 images in" in page.locator("#says").inner_text()
        expected = smidgen.sample(
            tiny_base(),
            delta=folder / "greek" / "delta.safetensors",
            classes=["elk"],
            num_images=2,
            steps=6,
            seed=7,
            sampler="dpm++",
        )
        for number, link in enumerate(page.locator("#pictures a").all()):
            data = base64.b64decode(link.get_attribute("href").partition(",")[2])
            (folder / "found.png").write_bytes(data)
            image = np.asarray(Image.open(folder / "found.png")).astype(int)
            assert np.abs(image - np.asarray(expected[number]).astype(int)).max() <= 1
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["width"]


@pytest.mark.slow
def test_names_are_text_and_what_cannot_be_is_said(base, folder, page):
    with listening(base, folder) as address:
        page.goto(address)
        page.get_by_role("button", name="<img src=x").click()
        page.fill("#prompt", "unicorn")
        page.locator("#go").click()
        page.locator("#says.bad").wait_for()
        assert 'unknown class "unicorn"' in page.locator("#says").inner_text()


@pytest.mark.slow
def test_two_deltas_are_mixed_and_the_base_is_beside(base, folder, page):
    with listening(base, folder) as address:
        page.goto(address)
        page.get_by_role("button", name="greek").click()
        page.select_option("#second", "thai")
        page.fill("#prompt", "bee")
        page.fill("#n", "1")
        page.fill("#steps", "3")
        page.check("#beside")
        draw(page)
        page.locator("#pictures a").nth(1).wait_for()
        names = [link.inner_text() for link in page.locator("#pictures a").all()]
        assert names == ["before 0", "greek 0"]


def test_guidance_leads_away_from_a_weaker_delta(base, folder, page):
    with listening(base, folder) as address:
        page.goto(address)
        page.get_by_role("button", name="greek").click()
        assert not page.locator("#weaker-row").is_visible()
        page.fill("#prompt", "bee")
        page.fill("#n", "1")
        page.fill("#steps", "3")
        page.select_option("#kind", "auto")
        page.select_option("#weaker", "thai")
        with page.expect_request("**/generations") as asked:
            draw(page)
    body = asked.value.post_data_json
    assert (body["guidance_kind"], body["guidance_model"]) == ("auto", "thai")


def test_the_key_is_asked_for_and_nothing_comes_from_elsewhere(base, folder, browser):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    with listening(base, folder, KEY) as address:
        page.goto(address)
        page.locator("#key").wait_for()
        page.fill("#key", KEY)
        page.locator("#key").press("Tab")
        page.get_by_role("button", name="greek").wait_for()
        policy = page.request.get(address).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    page.close()


def test_reports_of_studies_are_linked(base, folder, tmp_path, page):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "report.html").write_text("<h1>What the numbers say</h1>")
    with listening(base, folder, studies=tmp_path) as address:
        page.goto(address)
        with page.expect_popup() as opened:
            page.get_by_role("link", name="table").click()
        opened.value.get_by_text("What the numbers say").wait_for()
