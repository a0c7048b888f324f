"""The hub's client pointed at the stand-in, with the token of somebody who may write; a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from smidgen.cli.main import main
from smidgen.files.reading import sha256_of
from smidgen.models.base import Base
from tests.cli.conftest import Outcome
from tests.hub.standin import WRITER, Hub, listening
from tests.serving.serving import fitting
from tests.tiny.bases import tiny_base

DATE = "2026-12-01T10:00:00Z"


@pytest.fixture
def at(monkeypatch, tmp_path) -> Callable[[str], None]:
    """Points the client at an address, with a cache and a token of this test's own."""
    from huggingface_hub import constants

    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def point(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point


@pytest.fixture
def hub(at) -> Iterator[Hub]:
    """An empty hub."""
    found = Hub()
    with listening(found) as address:
        at(address)
        yield found


@pytest.fixture
def smidgen(capsys) -> Callable[..., Outcome]:
    """Runs the command line on its arguments."""

    def call(*arguments) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def base() -> Base:
    return tiny_base()


@pytest.fixture
def run(base, tmp_path) -> Path:
    """A run's folder as training and evaluation leave it, and a checkpoint that stays here."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "state.pt").write_bytes(b"a pickle")
    fitting(base, "difffit").save(folder / "delta.safetensors")
    Image.new("RGB", (8, 8), "navy").save(folder / "grid.png")
    (folder / "recipe.toml").write_text(
        f'base = "tiny"\ndata = "{tmp_path}/photos"\nprompt = "/imagine/a cat"\nsteps = 7\n'
        "lora.rank = 8\n"
    )
    (folder / "run.json").write_text(json.dumps({"date": DATE, "device": "cpu"}))
    write_result(folder)
    return folder


def write_result(folder: Path, **sampling) -> None:
    """What evaluate writes of the delta in `folder`."""
    drawn = {"sampler": "dpm++", "steps": 20, "guidance": 1.5, "seed": 0}
    drawn["delta_sha256"] = sha256_of(folder / "delta.safetensors")
    document = {
        "metrics": {"kid": {"mean": 0.25, "std": 0.125}, "fd": 2.5, "class_agreement": None},
        "baselines": {},
        "notes": {},
        "warnings": ["480 images: read KID first"],
        "protocol": {
            **{"features": "glyphs", "num_images": 480, "num_reference": 3360},
            **{"reference": str(folder.parent / "greek"), "reference_identity": "cf0d"},
            "sampling": drawn | sampling,
        },
    }
    (folder / "result.json").write_text(json.dumps(document))
