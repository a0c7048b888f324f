"""The hub, played by a local server: a model, a refusal, a closed door, and silence."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from smidgen.errors import SmidgenError
from smidgen.models import hub
from smidgen.models.names import is_hub_id
from tests.launch import HANG

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": b"words",
    "model_index.json": b"{}",
    "text_encoder/model.safetensors": b"not asked for",
    "transformer/config.json": b'{"a": 1}',
    "transformer/diffusion_pytorch_model.bin": b"a pickle",
    "transformer/diffusion_pytorch_model.safetensors": b"weights",
    "transformer/diffusion_pytorch_model.fp16.safetensors": b"second copy",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.fp16.safetensors": b"more weights",
}
WANTED = {
    "model_index.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}


class Hub(BaseHTTPRequestHandler):
    """The three answers of the hub that a download needs, for owner/model only."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = self.path.split("?")[0]
        prefix, _, name = path.partition(f"/resolve/{COMMIT}/")
        if path.startswith("/api/models/owner/model/tree/"):
            listing = [
                {"type": "file", "path": name, "size": len(data), "oid": f"{index:040x}"}
                for index, (name, data) in enumerate(FILES.items())
            ]
            self.send(json.dumps(listing).encode())
        elif path.startswith("/api/models/owner/model"):
            siblings = [{"rfilename": name} for name in FILES]
            self.send(
                json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": siblings}).encode()
            )
        elif prefix == "/owner/model" and name in FILES:
            self.send(FILES[name], ETag=f'"{list(FILES).index(name):040x}"')
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def send(self, body: bytes, **headers: str):
        self.send_response(200)
        headers |= {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def silence():
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def at(monkeypatch, tmp_path):
    """Points the hub's client at an address, with a cache of this test's own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def point(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point


def test_a_download_takes_safetensors_and_json_only_and_is_found_again_without_the_hub(at):
    with serve() as endpoint:
        at(endpoint)
        folder = hub.download("owner/model")
    there = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    assert set(there) == WANTED
    assert all(path.read_bytes() == FILES[name] for name, path in there.items())
    at("http://127.0.0.1:9")
    assert hub.download("owner/model") == folder


def test_other_files_of_another_revision_are_downloaded_where_asked_for(at, monkeypatch):
    import huggingface_hub

    asked = []
    real = huggingface_hub.snapshot_download

    def record(*arguments, **options):
        asked.append(options.get("revision"))
        return real(*arguments, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    with serve() as endpoint:
        at(endpoint)
        folder = hub.download("owner/model", patterns=("README.md",), revision="refs/pr/1")
    assert asked == ["refs/pr/1"]
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["README.md"]


def test_a_model_that_the_hub_does_not_have_is_said_to_be_so(at):
    with serve() as endpoint:
        at(endpoint)
        with pytest.raises(SmidgenError, match="no such model"):
            hub.download("owner/other")


def test_silence_ends(at, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    with silence() as endpoint:
        at(endpoint)
        with pytest.raises(SmidgenError, match=r"cannot be reached.*Give a folder"):
            hub.download("owner/model")


def test_what_obeys_no_timeout_is_left_behind_at_the_deadline(monkeypatch):
    """Name resolution does not: only the deadline ends it, below the ten seconds promised."""
    release = threading.Event()
    monkeypatch.setattr(hub, "_ask", lambda *_: str(release.wait(HANG)))
    assert hub.DEADLINE_SECONDS <= 6
    monkeypatch.setattr(hub, "DEADLINE_SECONDS", 0.05)
    assert "did not answer" in hub._known_files("owner/model", None)
    release.set()


LOAD = """
import sys
from smidgen.errors import SmidgenError
from smidgen.models.pretrained import load_base
try:
    load_base("owner/model")
except SmidgenError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_closed_door_is_reported_in_two_lines_with_the_way_out(tmp_path):
    """As a user meets it: a fresh process and HF_ENDPOINT."""
    unset = {"HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN"}
    environment = {k: v for k, v in os.environ.items() if k.upper() not in unset}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1, done.stderr
    assert "owner/model" in done.stdout
    assert "Give a folder" in done.stdout
    assert len(done.stdout.splitlines()) <= 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("facebook/DiT-XL-2-256", True),
        ("a/b", True),
        ("a", False),
        ("a/b/c", False),
        ("./b", False),
        ("/b", False),
        ("../b", False),
        ("a/", False),
        ("~/b", False),
        ("a b/c", False),
    ],
)
def test_the_form_of_a_hub_id(name, expected):
    assert is_hub_id(name) == expected
