"""DINOv2's pixels and class token, on a model of random weights."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from smidgen.evaluation import features
from smidgen.evaluation.dinov2 import MEAN, STD, prepare_dinov2

TABLE = features.EXTRACTORS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """16 x 16 patches, as 224 pixels want them: no position has to be interpolated."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "dinov2-large"
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=14
    )
    Dinov2Model(config).save_pretrained(path)
    return path


def picture(height: int, width: int):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 451), (64, 40)])
def test_the_whole_picture_is_squeezed_by_antialiased_bicubic_and_rounded(height, width):
    pixels = 80 + picture(height, width) // 3  # far from black and white, which clip on the way
    expected = F.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None].double(),
        size=(224, 224),
        mode="bicubic",
        antialias=True,
    )[0]
    difference = (prepare_dinov2(pixels) - expected).abs()
    # Pillow rounds after each axis: half a step for the last, and what the first one's becomes.
    assert difference.max() <= 1.6
    assert difference.mean() < 0.4


def test_features_are_the_models_normalised_class_token(folder, monkeypatch):
    monkeypatch.setattr(features, "EXTRACTORS", TABLE)
    extractor = features.load_extractor("dinov2", weights=folder.parent)
    images = torch.stack([extractor.prepare(picture(*size)) for size in ((224, 224), (50, 90))])
    read, logits = extractor.read(images)
    values = (images / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    model = Dinov2Model.from_pretrained(folder)
    with torch.no_grad():
        expected = model(pixel_values=values).last_hidden_state[:, 0]
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-5)
    assert read.std(dim=0).max() > 1e-3  # the pictures do count
    assert logits == {}
    assert (extractor.dim, extractor.resize, extractor.domain) == (8, "squash", None)
