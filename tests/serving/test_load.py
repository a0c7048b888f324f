"""Many requests at once, and all that the document of the server's API allows."""

import asyncio
import base64
import gc
import io
import random
import threading
from collections import Counter
from weakref import ref

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from PIL import Image
from schemathesis.specs.openapi.checks import positive_data_acceptance

import smidgen
from smidgen.serving.app import create_app
from smidgen.serving.batch import calls_of
from smidgen.serving.config import ServeConfig
from tests.serving.serving import fitting, listening
from tests.tiny.bases import NEW_CLASSES, tiny_base

URL = "/v1/images/generations"
HOST = {"host": "localhost"}


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """More deltas than slots, of two kinds."""
    made = tmp_path_factory.mktemp("deltas")
    for number in range(6):
        fitting(base, "difffit", number).save(made / f"d{number}.safetensors")
    fitting(base, "bitfit").save(made / "bitfit.safetensors")
    return made


def asked(number):
    """Requests that differ in all that may differ in a batch."""
    draw = random.Random(number)
    return {
        "model": draw.choice([*(f"d{i}" for i in range(6)), "bitfit"]),
        "prompt": draw.choice(NEW_CLASSES),
        "steps": draw.choice([1, 2, 3]),
        "guidance": draw.choice([1.0, 2.0, 4.0]),
        "sampler": draw.choice(["ddpm", "ddim", "dpm++"]),
        "seed": number,
    }


def send(address, bodies):
    """All at once."""

    async def all_of() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(client.post(URL, json=body) for body in bodies))

    return asyncio.run(all_of())


@pytest.mark.slow
def test_each_of_200_mixed_requests_gets_the_image_of_sample(base, folder):
    bodies = [asked(number) for number in range(200)]
    with listening(base, folder, slots=4, batch_size=32, waiting=400) as address:
        answers = send(address, bodies)
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200, answer.text
        found = base64.b64decode(answer.json()["data"][0]["b64_json"])
        image = np.asarray(Image.open(io.BytesIO(found))).astype(int)
        config = {key: body[key] for key in ("steps", "guidance", "sampler", "seed")}
        delta = folder / f"{body['model']}.safetensors"
        (expected,) = smidgen.sample(base, delta=delta, classes=[body["prompt"]], **config)
        assert np.abs(image - np.asarray(expected).astype(int)).max() <= 1, body


@pytest.mark.slow
def test_more_than_can_wait_are_refused_and_nothing_is_kept_of_them(base, folder, monkeypatch):
    go_on, jobs, asked_for = threading.Event(), [], 150

    def held(*given):
        go_on.wait()
        return calls_of(*given)

    monkeypatch.setattr("smidgen.serving.engine.calls_of", held)
    app = create_app(base, ServeConfig(deltas=folder, slots=2, waiting=50, batch_size=16))
    engine = app.state.served.engine
    submit = engine.submit
    monkeypatch.setattr(
        engine, "submit", lambda given: (jobs.extend(map(ref, given)), submit(given))
    )

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=None
        ) as client:
            bodies = [asked(number) for number in range(asked_for)]
            tasks = [asyncio.ensure_future(client.post(URL, json=body)) for body in bodies]
            while sum(task.done() for task in tasks) < asked_for - 50 - 16:
                await asyncio.sleep(0.01)
            go_on.set()
            return await asyncio.gather(*tasks)

    try:
        answers = asyncio.run(ask())
    finally:
        go_on.set()
        engine.stop()
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert 50 <= statuses[200] <= 50 + 16  # that waited, and that formed
    assert all("retry-after" in a.headers for a in answers if a.status_code == 429)
    assert engine.waiting == engine.active == 0
    assert all(pool.is_idle for pool in engine.pools.pools)
    del answers
    gc.collect()
    assert len(jobs) == asked_for
    assert [job for job in jobs if job() is not None] == []


@pytest.mark.slow
def test_all_that_the_document_of_the_api_allows_is_answered_as_it_says(base, folder):
    config = ServeConfig(deltas=folder, most_images=1, most_steps=2, waiting=10_000)
    app = create_app(base, config)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=HOST)

    try:
        for operation in schema.get_all_operations():
            check(operation.ok())
    finally:
        app.state.served.engine.stop()


def check(operation):
    """Some requests of one path, each answered as its document says."""

    @given(case=operation.as_strategy())
    @settings(
        max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def conforms(case):
        case.headers = {**(case.headers or {}), **HOST}
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    conforms()
