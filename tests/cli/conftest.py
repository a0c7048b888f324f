"""A tiny base and image folder for the verbs, and a call of the command line in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from smidgen.cli.main import main
from smidgen.models.sources import load_codec
from tests.tiny.bases import IMAGE_SIZE, KNOWN_CLASSES
from tests.tiny.codecs import autoencoder
from tests.tiny.images import write_photos
from tests.tiny.networks import dit
from tests.tiny.own_folder import write_safetensors


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def complaint(self) -> list[str]:
        """The lines on stderr."""
        return self.err.strip().splitlines()


@pytest.fixture
def smidgen(capsys):
    """Runs the command line on its arguments."""

    def call(*arguments) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaving:  # after printing a help
            code = int(leaving.code or 0)
        printed = capsys.readouterr()
        return Outcome(code, printed.out, printed.err)

    return call


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SMIDGEN_CACHE", str(tmp_path / "cache"))


def write_base(folder: Path, seed: int) -> Path:
    """A base folder of random weights with a random codec that reduces by two."""
    denoiser = dit(seed=seed)
    autoencoder(sample_size=IMAGE_SIZE).save_pretrained(folder / "vae")
    codec = load_codec(folder / "vae")
    write_safetensors(denoiser, folder, codec=codec, class_names=KNOWN_CLASSES)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """The folder of a tiny base."""
    return write_base(tmp_path_factory.mktemp("bases") / "tiny", seed=0)


@pytest.fixture(scope="session")
def other_base(tmp_path_factory) -> Path:
    """The folder of a base of the same shape with other weights."""
    return write_base(tmp_path_factory.mktemp("bases") / "other", seed=1)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Four images in each of two classes."""
    root = tmp_path_factory.mktemp("data") / "photos"
    return write_photos(root, ("dog", "elk"), per_class=4)


@pytest.fixture(scope="session")
def trained(base, photos, tmp_path_factory) -> Path:
    """The delta of a short training."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    code = main(train_arguments(base, photos, run))
    assert code == 0
    return run / "delta.safetensors"


def train_arguments(base: Path, photos: Path, run: Path, *more: str) -> list[str]:
    """A training of two steps."""
    fixed = ["--steps", "2", "--batch-size", "4", "--checkpoint-every", "1"]
    plain = ["--trackers", "--validation-share", "0", "--num-threads", "1"]
    places = ["--base", str(base), "--data", str(photos), "--output", str(run)]
    return ["train", *places, *fixed, *plain, *more]
