"""The table of extractors, and the pixels of the shipped classifier."""

import numpy as np
import pytest
import torch
from PIL import Image

from smidgen.data.images import fit
from smidgen.errors import UsageError
from smidgen.evaluation import features
from smidgen.evaluation.features import glyph_pixels, load_extractor
from smidgen.sizes import ImageSize

TABLE = features.EXTRACTORS


@pytest.fixture(autouse=True)
def _real_table(monkeypatch):
    monkeypatch.setattr(features, "EXTRACTORS", TABLE)


def noise(height: int, width: int):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_glyphs_of_a_multiple_of_32_pixels_are_averaged_in_blocks(factor):
    pixels = noise(32 * factor, 32 * factor)
    # Pillow averages along rows, rounds half up, then does the same along columns.
    rows = np.floor(pixels.reshape(32 * factor, 32, factor, 3).mean(axis=2) + 0.5)
    expected = np.floor(rows.reshape(32, factor, 32, 3).mean(axis=1) + 0.5)
    prepared = glyph_pixels(pixels)
    assert prepared.dtype == torch.uint8
    assert np.array_equal(prepared.numpy(), expected.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(32, 48), (40, 40), (100, 70), (16, 20)])
def test_glyphs_of_other_sizes_are_the_training_datas_crop(height, width):
    pixels = noise(height, width)
    expected = fit(Image.fromarray(pixels), ImageSize.of(32), "crop")
    assert np.array_equal(glyph_pixels(pixels).numpy(), expected)


def test_the_classifier_of_glyphs_knows_its_domain():
    extractor = load_extractor("glyphs")
    assert extractor.domain is not None
    assert set(extractor.domain) == {name for names in extractor.heads.values() for name in names}
    assert extractor.text is None
    images = torch.stack([extractor.prepare(noise(64, 64)), extractor.prepare(noise(33, 40))])
    read, logits = extractor.read(images)
    assert read.shape == (2, extractor.dim)
    assert set(logits) == set(extractor.heads)


def test_the_table_names_every_extractor():
    assert list(TABLE) == ["glyphs", "inception", "dinov2", "clip-b32", "clip-l14", "clip-glyphs"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inceptoin", {}, "choose from"),
        ("glyphs", {"weights": "x"}, "no weights"),
        ("glyphs", {"resize": "clean"}, "one way only"),
        ("dinov2", {"resize": "legacy"}, "one way only"),
        ("inception", {"resize": "crop"}, "clean or legacy"),
    ],
)
def test_misuse_is_refused_before_any_file_is_looked_for(name, options, message):
    with pytest.raises(UsageError, match=message):
        load_extractor(name, **options)
