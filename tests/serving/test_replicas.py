"""`smidgen serve --ray`: two replicas on a local Ray answer as one server does."""

import base64
import io
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

import smidgen
from smidgen.errors import UsageError
from smidgen.serving.config import ServeConfig
from tests.launch import free_port
from tests.serving.serving import fitting

pytest.importorskip("ray.serve")
MOST_ASKED = 200  # until both replicas have answered: each request goes to either


@pytest.fixture(scope="module")
def base():
    return smidgen.load_base("glyphs")


@pytest.fixture(scope="module")
def address(base, tmp_path_factory):
    """Of a server of two replicas, which ends cleanly when it is told to."""
    folder = tmp_path_factory.mktemp("deltas")
    fitting(base, "bitfit").save(folder / "few.safetensors")
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "smidgen.cli",
        "serve",
        "--base",
        "glyphs",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        [
            *(*command, "--deltas", str(folder), "--port", str(port)),
            *("--ray", "local", "--replicas", "2"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:  # to its end, if the process ends
            lines.append(line)
            if "serving 2 times glyphs" in line:
                break
        else:
            raise AssertionError("".join(lines))
        yield f"http://127.0.0.1:{port}", folder / "few.safetensors"
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_both_replicas_answer_and_draw_what_sample_draws(base, address):
    url, delta = address
    with httpx.Client(base_url=url, timeout=None) as client, ThreadPoolExecutor(8) as threads:
        replicas = set()
        for _ in range(0, MOST_ASKED, 8):
            for text in threads.map(lambda _: client.get("/metrics").text, range(8)):
                replicas |= set(re.findall(r'pid="(\d+)"', text))
            if len(replicas) == 2:
                break

        def draw(seed):
            body = {"model": "few", "prompt": "elk", "steps": 2, "sampler": "dpm++", "seed": seed}
            answer = client.post("/v1/images/generations", json=body)
            assert answer.status_code == 200, answer.text
            (found,) = answer.json()["data"]
            return Image.open(io.BytesIO(base64.b64decode(found["b64_json"])))

        drawn = list(threads.map(draw, range(4)))
    assert len(replicas) == 2
    for seed, image in enumerate(drawn):
        (expected,) = smidgen.sample(
            base, delta=delta, classes=["elk"], num_images=1, steps=2, sampler="dpm++", seed=seed
        )
        np.testing.assert_allclose(np.asarray(image, float), np.asarray(expected, float), atol=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 2}, "give --ray local"),
        ({"replicas": 0, "ray": "local"}, "replicas"),
        ({"ray": "local", "port": 0}, "port is 0"),
    ],
)
def test_replicas_that_cannot_be_are_refused(tmp_path, settings, message):
    with pytest.raises(UsageError, match=message):
        ServeConfig(deltas=tmp_path, **settings)
