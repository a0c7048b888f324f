"""Images that begin from a picture, and what each PNG says of how it was drawn."""

import base64
import io

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import smidgen
from tests.serving.serving import listening, write_library
from tests.tiny.bases import tiny_base

URL = "/v1/images/edits"
MORE = {"steps": 6, "seed": 5, "sampler": "ddim"}


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    return write_library(tmp_path_factory.mktemp("deltas"), base)


@pytest.fixture(scope="module")
def address(base, folder):
    with listening(base, folder) as found:
        yield found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A picture, and a mask whose right half is drawn anew, as white and as what is clear."""
    made = tmp_path_factory.mktemp("pictures")
    pixels = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(made / "image.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:] = 255
    Image.fromarray(mask).save(made / "mask.png")
    clear = np.dstack([pixels, 255 - mask])
    Image.fromarray(clear).save(made / "clear.png")
    return made


def image_of(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


OWN = tiny_base()  # equal to the one that is served, in which deltas act while images form


def drawn(path, **settings):
    config = {"classes": ["bee"], **MORE, **settings}
    (image,) = smidgen.sample(OWN, delta=path, **config)
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("mask", [None, "mask.png", "clear.png"])
def test_openai_s_client_gets_the_pictures_of_sample(base, folder, address, pictures, mask):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    image = pictures / "image.png"
    given = {} if mask is None else {"mask": (pictures / mask).open("rb")}
    found = client.images.edit(
        model="thai", image=image.open("rb"), prompt="bee", extra_body=MORE, **given
    )
    settings = {"image": image} | ({} if mask is None else {"mask": pictures / "mask.png"})
    expected = drawn(folder / "thai.safetensors", **settings)
    assert np.abs(image_of(found.data[0].b64_json) - expected).max() <= 1


def test_a_picture_is_restored_and_shown_on_the_way(base, folder, address, pictures):
    form = {"model": "thai", "prompt": "bee", "restore": "denoise", "noise_level": "0.2", **MORE}
    form |= {"stream": "true", "partial_images": "2"}
    files = {"image": (pictures / "image.png").read_bytes()}
    answer = httpx.post(f"{address}{URL}", data=form, files=files)
    kinds = [line.partition(": ")[2] for line in answer.text.splitlines() if line[:6] == "event:"]
    assert kinds == ["image_edit.partial_image"] * 2 + ["image_edit.completed"]


@pytest.mark.parametrize(
    ("form", "files", "message"),
    [
        ({}, {"image": b"no picture"}, "image"),
        ({}, {}, "image: "),
        ({"image_strength": "2"}, {}, "image_strength"),
        ({"restore": "denoise"}, {}, "noise_level"),
        ({}, {"mask": b"none"}, "mask"),
        ({"colour": "red"}, {}, "colour"),
    ],
)
def test_what_cannot_be_begun_from_is_said(address, pictures, form, files, message):
    given = {"model": "thai", "prompt": "bee", **MORE, **form}
    if message != "image: ":
        files = {"image": (pictures / "image.png").read_bytes()} | files
    answer = httpx.post(f"{address}{URL}", data=given, files=files or None)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_a_mask_of_another_size_is_named(address, pictures, tmp_path):
    Image.new("L", (5, 8), 255).save(tmp_path / "mask.png")
    files = {
        name: (place / f"{name}.png").read_bytes()
        for name, place in (("image", pictures), ("mask", tmp_path))
    }
    answer = httpx.post(f"{address}{URL}", data={"model": "thai", "prompt": "bee"}, files=files)
    assert "5 x 8" in answer.json()["error"]["message"]


def test_a_png_is_drawn_again_from_what_it_says(base, folder, address, tmp_path):
    body = {"model": "thai", "prompt": "bee", "n": 3, **MORE}
    answer = httpx.post(f"{address}/v1/images/generations", json=body, timeout=60)
    data = answer.json()["data"][2]["b64_json"]
    (tmp_path / "drawn.png").write_bytes(base64.b64decode(data))
    delta = folder / "thai.safetensors"
    (again,) = smidgen.sample(OWN, delta=delta, like=tmp_path / "drawn.png")
    assert np.abs(image_of(data) - np.asarray(again).astype(int)).max() <= 1
    # a sum is no file, and is not taken for one
    summed = httpx.post(
        f"{address}/v1/images/generations", json=body | {"model": "thai:0.5+greek:0.5"}
    )
    (tmp_path / "sum.png").write_bytes(base64.b64decode(summed.json()["data"][0]["b64_json"]))
    assert b'"model":"thai:0.5+greek:0.5"' in (tmp_path / "sum.png").read_bytes()
    for file in (delta, None):
        with pytest.raises(smidgen.SmidgenError, match="SHA-256"):
            smidgen.sample(OWN, delta=file, like=tmp_path / "sum.png")
