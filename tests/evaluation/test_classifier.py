"""The glyph classifier: its file keeps what it computes, and the shipped one reads unseen fonts."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from smidgen.data.embedded_sets import load_set
from smidgen.errors import SmidgenError
from smidgen.evaluation import classifier as classifier_module
from smidgen.evaluation.classifier import GlyphClassifier
from smidgen.models import dit

SCRIPTS = {"vowels": ["a", "e", "i"], "digits": ["0", "1"]}
SHIPPED = Path(dit.__file__).parent / "embedded" / "glyphs" / "classifier.safetensors"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GlyphClassifier(SCRIPTS).eval()


def draw_images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_logits_are_the_heads_of_the_shared_features(model):
    images = draw_images(4)
    features = model.features(images)
    assert features.shape == (4, classifier_module.NUM_FEATURES)
    for script, names in SCRIPTS.items():
        head = model.heads[script]
        expected = features @ head.weight.T + head.bias
        assert expected.shape == (4, len(names))
        torch.testing.assert_close(model.logits(images, script), expected)


def test_an_image_is_judged_alike_in_any_batch(model):
    images = draw_images(5)
    together = model.features(images)
    alone = torch.cat([model.features(image[None]) for image in images])
    torch.testing.assert_close(together, alone)


def test_loading_gives_the_rounded_weights_back_in_evaluation_mode(model, tmp_path):
    path = tmp_path / "classifier.safetensors"
    model.save(path)
    loaded = GlyphClassifier.load(path)
    assert not loaded.training
    assert loaded.scripts == {script: tuple(names) for script, names in SCRIPTS.items()}
    for key, value in model.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        torch.testing.assert_close(loaded.state_dict()[key], expected, rtol=0, atol=0)


def test_a_script_is_found_by_any_of_its_classes_and_not_by_others(model):
    assert model.find_script(["e", "a"]) == "vowels"
    assert model.find_script(["0"]) == "digits"
    assert model.find_script(["a", "0"]) is None
    assert model.find_script([]) is None


def test_an_unknown_script_is_refused_with_the_known_ones(model):
    with pytest.raises(SmidgenError, match="vowels, digits"):
        model.logits(draw_images(1), "runes")


def test_missing_damaged_and_foreign_files_are_refused(model, tmp_path):
    with pytest.raises(SmidgenError, match="cannot read"):
        GlyphClassifier.load(tmp_path / "missing.safetensors")
    path = tmp_path / "classifier.safetensors"
    model.save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(SmidgenError, match="cannot read"):
        GlyphClassifier.load(path)
    save_file({"weight": torch.zeros(1)}, path, metadata={"scripts": json.dumps(SCRIPTS)})
    with pytest.raises(SmidgenError, match="no glyph classifier"):
        GlyphClassifier.load(path)


@torch.inference_mode()
def test_the_shipped_classifier_reads_the_shipped_unseen_families():
    embedded = load_set("greek")
    model = GlyphClassifier.load(SHIPPED)
    assert set(embedded.class_names) == set(model.scripts["greek"])
    chosen = np.flatnonzero(embedded.is_test)[::4]
    images = torch.from_numpy(embedded.images(chosen)).permute(0, 3, 1, 2) / 127.5 - 1
    guesses = model.logits(images, "greek").argmax(1).numpy()
    names = np.array(model.scripts["greek"])[guesses]
    expected = np.array(embedded.class_names)[embedded.label[chosen]]
    assert (names == expected).mean() > 0.93  # results/classifier.json says more
