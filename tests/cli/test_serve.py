"""`smidgen serve` as a process."""

import json
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from smidgen.cli.main import main
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.pretrained import load_base


@pytest.fixture
def folder(tmp_path):
    import torch

    base = load_base("glyphs")
    generator = torch.Generator().manual_seed(0)
    delta = build_delta("bitfit", base, configure("bitfit", {}), ["a", "z"], generator)
    delta.save(tmp_path / "few.safetensors")
    return tmp_path


@pytest.fixture
def served(folder):
    """A process that serves the folder, and its address."""
    command = [sys.executable, "-m", "smidgen.cli", "serve", "--base", "glyphs", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--deltas", str(folder)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:  # to its end, if the process ends
            lines.append(line)
            if found := re.search(r"glyphs and 1 deltas at (http://\S+)", line):
                break
        else:
            raise AssertionError("".join(lines))
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_what_was_taken_is_drawn_before_the_end(served):
    process, address = served
    body = {"model": "few", "prompt": "z", "steps": 12, "stream": True, "partial_images": 3}
    kinds = []
    with httpx.stream(
        "POST", f"{address}/v1/images/generations", json=body, timeout=None
    ) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                kinds.append(json.loads(line.removeprefix("data: "))["type"])
                if len(kinds) == 1:
                    process.send_signal(signal.SIGTERM)
    assert kinds[-1] == "image_generation.completed"
    assert process.wait(600) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--deltas", "nowhere"], "deltas is nowhere; expected a folder"),
        (["--host", "0.0.0.0"], "set SMIDGEN_API_KEY"),
        (["--port", "70000"], "port"),
        (["--slots", "0"], "slots"),
        (["--image-seconds", "0"], "image_seconds is 0"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(tmp_path, capsys, flags, message):
    given = ["serve", "--base", "glyphs", "--deltas", str(tmp_path), *flags]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", "--base", "glyphs", "--deltas", str(tmp_path), "--port", port]) == 1
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err


def test_the_key_stands_in_no_recipe(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SMIDGEN_API_KEY", "short")
    assert main(["serve", "--base", "glyphs", "--deltas", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "at least 16" in error
    assert "short" not in error.replace("shorten", "")
