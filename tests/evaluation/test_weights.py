"""Published files and models: found, fetched once, checked; a small server plays their address."""

import contextlib
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from smidgen.errors import SmidgenError
from smidgen.evaluation import weights
from smidgen.evaluation.weights import PublishedFile, PublishedModel, model_folder, read_published
from tests.launch import HANG

CONTENT = b"weights of a network" * 1000
MODEL = PublishedModel(
    repo_id="owner/net-large", patterns=("config.json", "net.safetensors"), revision="refs/pr/1"
)


def published(url: str = "http://127.0.0.1:9/net.pt", content: bytes = CONTENT) -> PublishedFile:
    return PublishedFile(name="net.pt", url=url, sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Every place that is looked at lies in this test's folder."""
    monkeypatch.setattr(weights.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(weights.torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("NO_PROXY", "*")
    return {
        "SMIDGEN_CACHE": str(tmp_path / "cache"),
        "SMIDGEN_WEIGHTS": str(tmp_path / "mine"),
        "HOME": str(tmp_path / "home"),
    }


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@contextlib.contextmanager
def serve(content: bytes):
    """The address of a file, and the list of what was asked for."""
    asked: list[str] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/net.pt", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    "place",
    [
        "mine/net.pt",
        "cache/weights/net.pt",
        "hub/checkpoints/net.pt",
        "tmp/net.pt",
        "home/.cache/k-diffusion/net.pt",
        f"home/.cache/dnnlib/downloads/{hashlib.md5(b'http://127.0.0.1:9/net.pt').hexdigest()}_net.pt",
    ],
)
def test_a_file_on_this_machine_is_found_without_the_network(place, tmp_path, places):
    put(tmp_path / place)
    assert read_published(published(), environment=places) == CONTENT


def test_what_is_given_goes_first_as_a_file_or_as_its_folder(tmp_path, places):
    put(tmp_path / "mine" / "net.pt", b"other bytes")
    given = put(tmp_path / "given" / "net.pt")
    renamed = put(tmp_path / "renamed.bin")
    for path in (given, given.parent, renamed):
        assert read_published(published(), given=path, environment=places) == CONTENT
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(SmidgenError, match=r"no such file.*net\.pt"):
            read_published(published(), given=path, environment=places)


@pytest.mark.parametrize("place", ["mine/net.pt", "cache/weights/net.pt", "given/net.pt"])
@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"!", b""])
def test_other_bytes_are_refused_with_both_hashes(place, content, tmp_path, places):
    path = put(tmp_path / place, content)
    given = path if place.startswith("given") else None
    with pytest.raises(SmidgenError) as caught:
        read_published(published(), given=given, environment=places)
    for part in (str(path), hashlib.sha256(content).hexdigest(), published().sha256):
        assert part in str(caught.value)


def test_it_is_fetched_once_and_kept_whole(tmp_path, places):
    put(tmp_path / "tmp" / "net.pt", CONTENT[:500])  # of another program, half a download
    with serve(CONTENT) as (url, asked):
        for _ in range(2):
            assert read_published(published(url), environment=places) == CONTENT
    assert asked == ["/net.pt"]
    (kept,) = (tmp_path / "cache" / "weights").iterdir()
    assert kept.name == "net.pt"
    assert kept.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [CONTENT[:-1], b"!" + CONTENT[1:]])
def test_a_wrong_answer_is_refused_and_not_kept(content, tmp_path, places):
    with serve(content) as (url, _), pytest.raises(SmidgenError, match="expected"):
        read_published(published(url), environment=places)
    assert list((tmp_path / "cache").rglob("*.*")) == []


def test_a_file_out_of_reach_says_where_to_get_it_and_where_to_put_it(tmp_path, places):
    with pytest.raises(SmidgenError) as caught:
        read_published(published(), environment=places)
    place = tmp_path / "cache" / "weights" / "net.pt"
    for part in ("http://127.0.0.1:9/net.pt", published().sha256, str(place)):
        assert part in str(caught.value)
    put(place)
    assert read_published(published(), environment=places) == CONTENT


def test_an_address_that_never_answers_ends_at_the_deadline(places, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(weights, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(weights.urllib.request, "urlopen", lambda *_, **__: release.wait(HANG))
    with pytest.raises(SmidgenError, match="no answer within"):
        read_published(published(), environment=places)
    release.set()


@pytest.mark.parametrize("place", ["given", "given/net-large", "mine/net-large"])
def test_a_models_folder_is_found_by_its_name(place, tmp_path, places):
    put(tmp_path / "cache" / "weights" / "net-large" / "config.json")
    folder = put(tmp_path / place / "config.json").parent
    given = tmp_path / "given" if place.startswith("given") else None
    assert model_folder(MODEL, given=given, environment=places) == folder


def test_a_folder_without_the_model_is_refused(tmp_path, places):
    with pytest.raises(SmidgenError, match=r"config\.json.*net-large"):
        model_folder(MODEL, given=tmp_path, environment=places)


def test_the_hub_is_asked_for_the_files_and_its_refusal_says_what_else_to_do(
    tmp_path, places, monkeypatch
):
    def refuse(repo_id, *, patterns, revision):
        assert (repo_id, patterns, revision) == ("owner/net-large", MODEL.patterns, "refs/pr/1")
        raise SmidgenError("the hub cannot be reached")

    monkeypatch.setattr(weights, "download", refuse)
    with pytest.raises(SmidgenError, match="cannot be reached") as caught:
        model_folder(MODEL, environment=places)
    place = tmp_path / "cache" / "weights" / "net-large"
    for part in ("net.safetensors", "huggingface.co/owner/net-large", str(place)):
        assert part in str(caught.value)
