"""The server's answers, with OpenAI's own client and with requests that no client sends."""

import base64
import io
import json
import shutil
import socket
import time

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

import smidgen
from smidgen.core.arithmetic import combine
from smidgen.errors import UsageError
from smidgen.serving.app import create_app
from smidgen.serving.config import ServeConfig
from tests.serving.serving import fitting, listening, write_library
from tests.tiny.bases import NEW_CLASSES, tiny_base

URL = "/v1/images/generations"
KEY = "a-key-of-sixteen-or-more"


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    return write_library(tmp_path_factory.mktemp("deltas"), base)


@pytest.fixture(scope="module")
def address(base, folder):
    with listening(base, folder, waiting=40, most_images=8, slots=2) as found:
        yield found


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, timeout=60) as made:
        yield made


def ask(client, **body):
    given = {"model": "greek", "prompt": "bee", "steps": 4, "seed": 5} | body
    return client.post(URL, json={k: v for k, v in given.items() if v is not None})


def image_of(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


OWN = tiny_base()  # equal to the one that is served, in which deltas act while images form


def drawn(path, name="bee", **settings):
    """What `smidgen sample` draws."""
    config = {"classes": [name], "steps": 4, "seed": 5} | settings
    return [np.asarray(image).astype(int) for image in smidgen.sample(OWN, delta=path, **config)]


def problem(answer, status, code=None):
    assert answer.status_code == status, answer.text
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert found["code"] == code
    return found["message"]


def test_openai_s_client_gets_the_images_of_sample(base, folder, address):
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == [base.name, "greek", "lora", "thai"]
    more = {"steps": 4, "seed": 5, "guidance": 3.0}
    found = client.images.generate(model="thai", prompt="elk", n=3, extra_body=more)
    expected = drawn(folder / "thai.safetensors", "elk", num_images=3, guidance=3.0)
    assert len(found.data) == 3
    for one, image in zip(found.data, expected, strict=True):
        assert np.abs(image_of(one.b64_json) - image).max() <= 1
    with pytest.raises(openai.NotFoundError, match='no model "thaii"; did you mean "thai"'):
        client.images.generate(model="thaii", prompt="elk")


def test_the_base_a_strength_and_a_sum_are_models_too(base, folder, client):
    one, two = (
        smidgen.Delta.load(p)
        for p in (folder / "greek" / "delta.safetensors", folder / "thai.safetensors")
    )
    summed = combine([one, two], [0.7, 0.3])
    data = ask(client, model="greek:0.7+thai:0.3").json()["data"]
    assert np.abs(image_of(data[0]["b64_json"]) - drawn(summed)[0]).max() <= 1
    data = ask(client, model=base.name, prompt="cat").json()["data"]
    assert np.abs(image_of(data[0]["b64_json"]) - drawn(None, "cat")[0]).max() <= 1
    halved = ask(client, model="lora:0.5", prompt="bee")
    assert "lacks" in problem(halved, 400)  # a row of the table stands for nothing in the base


def test_images_stream_with_pictures_on_the_way(base, folder, client):
    body = {"model": "greek", "prompt": "fox", "steps": 6, "seed": 1, "n": 2, "stream": True}
    events = []
    with client.stream("POST", URL, json=body | {"partial_images": 2}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
    kinds = [event["type"].rpartition(".")[2] for event in events]
    assert kinds.count("partial_image") == 4
    assert kinds.count("completed") == 2
    expected = drawn(folder / "greek" / "delta.safetensors", "fox", steps=6, seed=1, num_images=2)
    for event in events:
        if event["type"].endswith("completed"):
            image = image_of(event["b64_json"])
            assert np.abs(image - expected[event["index"]]).max() <= 1


def test_formats_of_the_answer(client):
    answer = ask(client, response_format="url", output_format="webp").json()
    (picture,) = answer["data"]
    assert picture["url"].startswith("data:image/webp;base64,")
    assert picture["b64_json"] is None
    assert answer["size"] == "8x8"
    seeds = {ask(client, seed=None).json()["data"][0]["seed"] for _ in range(2)}
    assert len(seeds) == 2  # drawn by the server, and told


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"n": -1}, "n: "),
        ({"n": 9}, "n is 9; this server takes at most 8"),
        ({"steps": 251}, "steps is 251"),
        ({"size": "32000x32000"}, 'size is "32000x32000"; this server draws 8x8'),
        ({"prompt": "unicorn"}, 'unknown class "unicorn"'),
        ({"prompt": None}, "prompt: "),
        ({"sampler": "euler"}, "euler does not sample"),
        ({"guidance_kind": "auto"}, "guidance_delta"),
        ({"guidance_interval": [0.8, 0.2]}, "guidance_interval"),
        ({"model": "greek:much"}, "no finite number"),
        ({"model": "greek+" * 9}, "at most 8"),
        ({"model": "greek+lora"}, "of lora"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_requests_that_make_no_sense_say_what_does(client, body, message):
    assert message in problem(ask(client, **body), 400)


@pytest.mark.parametrize(
    "name", ["../greek", "/etc/passwd", "greek/delta", "..\\x", "a\x00b", "%2e"]
)
def test_a_name_never_becomes_a_path(client, name):
    assert "no model" in problem(ask(client, model=name), 404, "model_not_found")


def test_a_weaker_delta_is_named_as_any(base, folder, client):
    greek = folder / "greek" / "delta.safetensors"
    kind = {"guidance_kind": "auto", "guidance": 2.0}
    data = ask(client, model="thai", guidance_model="greek", **kind).json()["data"]
    expected = drawn(folder / "thai.safetensors", guidance_delta=greek, **kind)[0]
    assert np.abs(image_of(data[0]["b64_json"]) - expected).max() <= 1
    assert "no model" in problem(
        ask(client, guidance_model="../greek", **kind), 404, "model_not_found"
    )


def test_what_is_no_request(client, address):
    headers = {"content-type": "application/json"}
    assert problem(client.post(URL, content=b"{nonsense", headers=headers), 400)
    assert problem(client.post(URL, content=b"[1, 2]", headers=headers), 400)
    assert problem(client.post(URL, content=b'{"model": "greek"}'), 400)  # not said to be JSON
    assert problem(client.get("/v1/nothing"), 404)
    assert problem(client.get(URL), 405)
    assert "bytes" in problem(client.post(URL, content=b" " * 20_000_001, headers=headers), 413)
    assert problem(client.get("/v1/models", headers={"host": "evil.example"}), 421)


def test_a_body_that_does_not_say_how_long_it_is_has_the_same_limit(client):
    chunks = (b" " * 1_000_000 for _ in range(21))
    answer = client.post(URL, content=chunks, headers={"content-type": "application/json"})
    assert "may have 20,000,000 bytes" in problem(answer, 413)


def test_a_key_is_asked_for(base, folder):
    with pytest.raises(UsageError, match="SMIDGEN_API_KEY"):
        create_app(base, ServeConfig(deltas=folder, host="0.0.0.0"))
    with pytest.raises(UsageError, match="at least 16"):
        create_app(base, ServeConfig(deltas=folder), "short")
    with listening(base, folder, KEY) as address:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
            answer = httpx.get(f"{address}/v1/models", headers=header)
            assert "API key" in problem(answer, 401)
        good = {"authorization": f"Bearer {KEY}"}
        assert httpx.get(f"{address}/v1/models", headers=good).status_code == 200
        assert httpx.get(f"{address}/health").status_code == 200


def test_a_full_queue_says_when_to_ask_again(base, folder):
    with listening(base, folder, waiting=5, batch_size=1, most_steps=1000) as address:
        body = {"model": "greek", "prompt": "bee", "n": 5, "steps": 1000}
        with httpx.stream("POST", f"{address}{URL}", json=body | {"stream": True}) as first:
            assert first.status_code == 200
            answer = httpx.post(f"{address}{URL}", json=body)
            assert "wait already" in problem(answer, 429, "queue_full")
            assert int(answer.headers["retry-after"]) >= 1
            with httpx.stream("POST", f"{address}{URL}", json=body | {"stream": True}) as streamed:
                assert streamed.status_code == 429
        never = httpx.post(f"{address}{URL}", json=body | {"n": 6})
        assert "at most 5 may wait" in problem(never, 400)  # asking again would not help


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}]
)
def test_a_page_of_another_site_cannot_ask(client, address, headers):
    answer = client.post(URL, json={"model": "greek", "prompt": "bee"}, headers=headers)
    assert "another site" in problem(answer, 403)
    form = client.post("/v1/images/edits", data={"model": "greek"}, headers=headers)
    assert form.status_code == 403
    assert client.get("/v1/models", headers={"origin": address}).status_code == 200


def test_an_image_may_take_so_long(base, folder):
    with listening(base, folder, image_seconds=0.05) as address:
        body = {"model": "greek", "prompt": "bee", "steps": 250}
        assert "over 0.05 s" in problem(httpx.post(f"{address}{URL}", json=body), 504)


def test_a_client_that_leaves_is_not_drawn_for(base, folder):
    with listening(base, folder, batch_size=1, most_steps=1000) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        body = json.dumps({"model": "greek", "prompt": "bee", "steps": 1000, "n": 10})
        for more in ("", ', "stream": true'):
            sent = body[:-1] + more + "}"
            with socket.create_connection((host, int(port))) as gone:
                head = f"POST {URL} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(sent)}\r\n"
                gone.sendall(f"{head}content-type: application/json\r\n\r\n{sent}".encode())
                wait_for(address, "smidgen_images_active", lambda value: value > 0)
            wait_for(address, "smidgen_images_active", lambda value: value == 0)
        # those that were done before the client had gone count as drawn
        failed = number_of(address, "smidgen_images_failed_total")
        assert failed + number_of(address, "smidgen_images_total") == 20
        assert failed > 10


def test_the_folder_may_change_while_it_is_served(base, tmp_path):
    folder = write_library(tmp_path / "deltas", base)
    with listening(base, folder) as address, httpx.Client(base_url=address, timeout=60) as client:
        old = ask(client, model="thai").json()["data"][0]["b64_json"]
        fitting(base, "difffit", 8).save(folder / "new.safetensors")
        (folder / "broken.safetensors").write_bytes(b"\xff" * 100)
        (folder / "huge.safetensors").write_bytes((2**40).to_bytes(8, "little") + b"{}")
        shutil.copy(folder / "thai.safetensors", folder / "a+b.safetensors")
        other = tiny_base(1)
        fitting(other, "difffit").save(folder / "other.safetensors")
        names = [model["id"] for model in client.get("/v1/models").json()["data"]]
        assert names == [base.name, "greek", "lora", "new", "thai"]
        assert ask(client, model="new").status_code == 200
        assert problem(ask(client, model="broken"), 404, "model_not_found")
        assert problem(ask(client, model="other"), 404, "model_not_found")
        shutil.copy(folder / "new.safetensors", folder / "thai.safetensors")
        assert ask(client, model="thai").json()["data"][0]["b64_json"] != old
        cut = (folder / "greek" / "delta.safetensors").read_bytes()[:-10]
        (folder / "greek" / "delta.safetensors").write_bytes(cut)
        assert problem(ask(client, model="greek"), 404, "model_not_found")
        (folder / "lora.safetensors").unlink()
        assert problem(ask(client, model="lora"), 404, "model_not_found")
        assert client.get("/ready").status_code == 200


def test_classes_of_models_are_told(client):
    found = {model["id"]: model for model in client.get("/v1/models").json()["data"]}
    assert found["greek"]["classes"] == list(NEW_CLASSES)
    assert found["greek"]["method"] == "difffit"
    assert found["greek"]["bytes"] > 0


def number_of(address, name):
    for line in httpx.get(f"{address}/metrics").text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"{name} is not measured")


def wait_for(address, name, good, seconds=30):
    end = time.monotonic() + seconds
    while not good(number_of(address, name)):
        assert time.monotonic() < end, f"{name} stays {number_of(address, name)}"
        time.sleep(0.02)
