"""Inception's two resizings and its call, on a tiny TorchScript file built as the released one."""

import hashlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from smidgen.errors import SmidgenError, UsageError
from smidgen.evaluation import features, inception
from smidgen.evaluation.inception import prepare_clean, prepare_legacy

TABLE = features.EXTRACTORS
SIZES = [(32, 32), (299, 299), (70, 330), (640, 411), (1, 5)]


class TinyInception(nn.Module):
    """The released graph's two stages and its call, with D = 6 features and K = 9 outputs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 9, stride=17), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )
        self.output = nn.Linear(6, 9)

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        count, height, width = img.shape[0], img.shape[2], img.shape[3]
        theta = torch.eye(2, 3)
        theta[0, 2] += 1.0 / width - 1.0 / 299
        theta[1, 2] += 1.0 / height - 1.0 / 299
        grid = F.affine_grid(theta.repeat(count, 1, 1), [count, 3, 299, 299], align_corners=False)
        x = F.grid_sample(
            img.float(), grid, mode="bilinear", padding_mode="border", align_corners=False
        )
        seen = self.layers((x - 128) / 128).reshape(-1, 6)
        if return_features:
            return seen
        if no_output_bias:
            return F.linear(seen, self.output.weight).softmax(dim=1)
        return self.output(seen).softmax(dim=1)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return TinyInception().eval().requires_grad_(False)


@pytest.fixture
def weights(network, tmp_path, monkeypatch):
    """The file, known by its own hash."""
    monkeypatch.setattr(features, "EXTRACTORS", TABLE)
    path = tmp_path / inception.PUBLISHED.name
    torch.jit.script(network).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    known = inception.PublishedFile(name=path.name, url=inception.PUBLISHED.url, sha256=digest)
    monkeypatch.setattr(features, "INCEPTION", known)
    return path


def picture(height: int, width: int, seed: int = 0):
    """Noise with flat black and white parts, where bicubic resampling overshoots."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[: height // 2, : width // 3] = 255
    pixels[height // 2 :, : width // 3] = 0
    return pixels


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_clean_is_antialiased_bicubic_neither_rounded_nor_out_of_range(height, width):
    pixels = picture(height, width)
    # PyTorch's own antialiased bicubic has the coefficients of Pillow's, in float64 exact ones.
    expected = F.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].double(),
        size=(299, 299),
        mode="bicubic",
        antialias=True,
    )[0]
    prepared = prepare_clean(pixels)
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared.double(), expected.clamp(0, 255), rtol=0, atol=1e-4)
    if (height, width) != (299, 299):
        assert (prepared != prepared.round()).any()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_legacy_reads_at_i_times_size_over_299_and_nothing_around_it(height, width):
    pixels = picture(height, width)
    prepared = prepare_legacy(pixels)
    assert prepared.shape == (3, 299, 299)

    def expected(channel: int, i: int, j: int) -> float:
        y, x = i * height / 299, j * width / 299
        top, left = math.floor(y), math.floor(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        part = pixels[:, :, channel].astype(float)
        upper = part[top, left] + (part[top, right] - part[top, left]) * (x - left)
        lower = part[bottom, left] + (part[bottom, right] - part[bottom, left]) * (x - left)
        return upper + (lower - upper) * (y - top)

    places = np.random.default_rng(1).integers(0, 299, (200, 2)).tolist()
    for i, j in [*places, (0, 0), (298, 298)]:
        for channel in range(3):
            assert float(prepared[channel, i, j]) == pytest.approx(
                expected(channel, i, j), abs=1e-3
            )


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_legacy_gives_the_graphs_own_features(height, width, network, weights):
    extractor = features.load_extractor("inception", weights=weights, resize="legacy")
    pixels = picture(height, width)
    read, _ = extractor.read(extractor.prepare(pixels)[None])
    raw = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    expected = network(raw, return_features=True)
    # The graph computes its places in float32: they are off by some 1e-5 of a pixel.
    torch.testing.assert_close(read, expected, rtol=1e-3, atol=1e-4)


def test_clean_gives_the_graphs_features_and_its_softmax_without_bias(network, weights):
    extractor = features.load_extractor("inception", weights=weights)
    images = torch.stack([extractor.prepare(picture(*size)) for size in SIZES])
    read, logits = extractor.read(images)
    # At 299 pixels the graph's own resizing returns what it is given, rounding aside.
    torch.testing.assert_close(read, network(images, return_features=True), rtol=1e-4, atol=1e-4)
    expected = network(images, no_output_bias=True)
    torch.testing.assert_close(logits["imagenet-2015"].softmax(1), expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(logits["imagenet-2015"].softmax(1), network(images), atol=1e-2)
    assert read.dtype == torch.float32


def test_the_extractor_says_what_it_is(weights):
    clean = features.load_extractor("inception", weights=weights.parent)
    legacy = features.load_extractor("inception", weights=weights, resize="legacy")
    assert (clean.name, clean.dim, clean.image_size) == ("inception", 6, 299)
    assert (clean.resize, legacy.resize) == ("clean", "legacy")
    assert clean.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert len(clean.heads["imagenet-2015"]) == 9
    assert clean.domain is None
    assert clean.text is None


def test_numbered_class_folders_are_not_taken_for_the_networks_outputs(weights):
    extractor = features.load_extractor("inception", weights=weights)
    assert extractor.head_for({"0", "1", "2"}) is None


@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_file_with_another_hash_is_never_opened(damage, weights, monkeypatch):
    content = weights.read_bytes()
    weights.write_bytes(content[:-10] if damage == "truncated" else content + b"\0")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("opened unchecked"))
    with pytest.raises(SmidgenError, match="SHA-256"):
        features.load_extractor("inception", weights=weights)


def test_an_unknown_resize_is_refused(weights):
    with pytest.raises(UsageError, match="clean or legacy"):
        features.load_extractor("inception", weights=weights, resize="bilinear")
