"""`smidgen serve --ray`: two replicas on a local Ray answer as one server does."""

import base64
import io
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

import smidgen
from smidgen.errors import SmidgenError, UsageError
from smidgen.models.chosen import BaseOnDevice
from smidgen.serving.config import ServeConfig
from smidgen.serving.replicas import check_address, placed
from tests.launch import free_port
from tests.serving.serving import fitting

MOST_ASKED = 200  # until both replicas have answered: each request goes to either


@pytest.fixture(scope="module")
def base():
    return smidgen.load_base("glyphs")


@pytest.fixture(scope="module")
def address(base, tmp_path_factory):
    """Of a server of two replicas, which ends cleanly when it is told to."""
    pytest.importorskip("ray.serve")
    folder = tmp_path_factory.mktemp("deltas")
    fitting(base, "bitfit").save(folder / "few.safetensors")
    port = free_port()
    command = [sys.executable, "-m", "smidgen.cli", "serve", "--base", "glyphs"]
    command += ["--deltas", str(folder), "--port", str(port), "--ray", "local", "--replicas", "2"]
    log = tmp_path_factory.mktemp("log") / "log"
    with log.open("w") as told:  # a pipe that nobody reads would fill
        process = subprocess.Popen(command, stderr=told)
    try:
        while "serving 2 times glyphs" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}", folder / "few.safetensors"
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
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


def test_a_cluster_that_serves_elsewhere_is_refused_and_not_taken_for_this_server(tmp_path):
    config = ServeConfig(deltas=tmp_path, ray="auto", port=8000)
    check_address(SimpleNamespace(host="127.0.0.1", port=8000), config)
    for host, port in (("0.0.0.0", 8000), ("127.0.0.1", 9000)):
        with pytest.raises(SmidgenError, match=rf"serves at {host}:{port} already"):
            check_address(SimpleNamespace(host=host, port=port), config)


def test_a_replica_finds_what_lies_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "glyphs", "deltas", "studies"):
        (tmp_path / name).mkdir()
    config = ServeConfig(deltas=Path("deltas"), studies=Path("studies"), ray="local")
    options, there = placed(BaseOnDevice(base="base", codec="owner/codec"), config)
    assert (options.base, options.codec) == (str(tmp_path / "base"), "owner/codec")
    assert (there.deltas, there.studies) == (tmp_path / "deltas", tmp_path / "studies")
    assert placed(BaseOnDevice(base="glyphs"), config)[0].base == "glyphs"  # the shipped one
