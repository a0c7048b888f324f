"""A tiny base and image folder for the verbs, and a call of the command line in this process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from smidgen.cli.main import main
from smidgen.models.dit import DiT, DiTConfig

CLASSES = ("ant", "bee", "cat")
CONFIG = DiTConfig(image_size=4, width=16, depth=2, num_heads=2, num_classes=len(CLASSES))
IMAGE_SIZE = 8


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
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    folder.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiT(CONFIG)
        for name, parameter in model.named_parameters():
            if name != "pos_embed":
                torch.nn.init.normal_(parameter, std=0.2)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            mid_block_add_attention=False,
            sample_size=IMAGE_SIZE,
        ).save_pretrained(folder / "vae")
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "dit.safetensors")
    description = {
        "format": "smidgen-base",
        "dit": asdict(CONFIG),
        "class_names": list(CLASSES),
        "image_size": IMAGE_SIZE,
        "schedule": {"kind": "linear", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
    }
    (folder / "config.json").write_text(json.dumps(description))
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
    generator = np.random.default_rng(0)
    for name in ("dog", "elk"):
        (root / name).mkdir(parents=True)
        for number in range(4):
            pixels = generator.integers(0, 255, size=(IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


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
