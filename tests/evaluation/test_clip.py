"""CLIP's pixels against transformers' own processor, its embeddings against the model's own."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from smidgen.errors import SmidgenError
from smidgen.evaluation import clip, features
from smidgen.evaluation.clip import OPENAI_MEAN, OPENAI_STD, prepare_clip
from smidgen.evaluation.protocol import unseen

TABLE = features.EXTRACTORS
VOCAB = ["<|startoftext|>", "<|endoftext|>", *"abcdeo", *(f"{letter}</w>" for letter in "abcdeo")]
SIDE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of random weights with a tokenizer of six letters, saved as transformers does."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "clip"
    shape = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 5,
    }
    tokens = {"vocab_size": len(VOCAB), "max_position_embeddings": 7}
    tokens |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config=shape | tokens,
        vision_config=shape | {"image_size": SIDE, "patch_size": 8},
        projection_dim=5,
    )
    CLIPModel(config).save_pretrained(path)
    vocabulary = {token: number for number, token in enumerate(VOCAB)}
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(path)
    return path


@pytest.fixture
def extractor(folder, monkeypatch):
    monkeypatch.setattr(features, "EXTRACTORS", TABLE)
    return features.load_extractor("clip-b32", weights=folder)


def picture(height: int, width: int, seed: int = 0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def normalised(images):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_MEAN, OPENAI_STD))
    return (images / 255 - mean) / std


@pytest.mark.parametrize(
    ("height", "width"), [(224, 224), (256, 256), (32, 32), (300, 451), (512, 300), (100, 101)]
)
def test_pixels_are_those_of_transformers_processor(height, width):
    pixels = picture(height, width)
    expected = CLIPImageProcessorPil()(pixels, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(normalised(prepare_clip(pixels, 224)), expected)


@pytest.mark.parametrize(("height", "width"), [(224, 227), (227, 224), (224, 229)])
def test_an_odd_overhang_is_halved_to_the_nearest_even_as_in_the_released_code(height, width):
    """transformers always rounds down: its crop is one pixel off for 227."""
    pixels = picture(height, width)
    half = {227: 2, 229: 2}[max(height, width)]
    rows = slice(half, half + 224) if height > 224 else slice(0, 224)
    columns = slice(half, half + 224) if width > 224 else slice(0, 224)
    assert np.array_equal(
        prepare_clip(pixels, 224).numpy().transpose(1, 2, 0), pixels[rows, columns]
    )


def test_features_are_the_models_projected_embeddings(extractor, folder):
    images = torch.stack([extractor.prepare(picture(*size)) for size in ((40, 30), (16, 16))])
    read, logits = extractor.read(images)
    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        ids = torch.tensor([[0, 1]])
        expected = model(input_ids=ids, pixel_values=normalised(images)).image_embeds
    lengths = read.norm(dim=1, keepdim=True)
    torch.testing.assert_close(read / lengths, expected)
    assert not torch.allclose(lengths, torch.ones_like(lengths), atol=1e-2)
    assert logits == {}
    assert (extractor.dim, extractor.image_size, extractor.resize) == (5, SIDE, "clip")


@pytest.mark.parametrize("at_a_time", [2, 256])
def test_texts_are_the_models_normalised_embeddings(at_a_time, extractor, folder, monkeypatch):
    monkeypatch.setattr(clip, "TEXTS_AT_A_TIME", at_a_time)
    texts = ["a", "bad code", "abba"]
    read = extractor.text(texts)
    model = CLIPModel.from_pretrained(folder)
    tokens = [
        ["a</w>"],
        ["b", "a", "d</w>", "c", "o", "d", "e</w>"][:5],  # 7 tokens with both ends
        ["a", "b", "b", "a</w>"],
    ]
    for row, words in zip(read, tokens, strict=True):
        ids = torch.tensor([[0, *(VOCAB.index(word) for word in words), 1]])
        pixels = torch.zeros(1, 3, SIDE, SIDE)
        with torch.no_grad():
            expected = model(input_ids=ids, pixel_values=pixels).text_embeds[0]
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)
    assert extractor.text([]).shape == (0, 5)
    assert math.isclose(float(read[0].norm()), 1, rel_tol=1e-5)


def test_texts_without_a_tokenizer_are_refused_and_images_still_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "EXTRACTORS", TABLE)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    extractor = features.load_extractor("clip-l14", weights=tmp_path)
    assert extractor.read(extractor.prepare(picture(20, 20))[None])[0].shape == (1, 5)
    with pytest.raises(SmidgenError, match=r"no tokenizer.*tokenizer\.json"):
        extractor.text(["a"])


@pytest.fixture
def shipped(folder, tmp_path, monkeypatch):
    """The same model in the place of the shipped one, with a preprocessor of its own."""
    shutil.copytree(folder, tmp_path / "clip-glyphs")
    (tmp_path / "clip-glyphs" / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate(VOCAB)})
    )
    own = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.5, 0.25, 0.2],
    )
    own.save_pretrained(tmp_path / "clip-glyphs")
    monkeypatch.setattr(features, "EMBEDDED", tmp_path)
    monkeypatch.setattr(features, "EXTRACTORS", TABLE)
    return tmp_path / "clip-glyphs"


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (40, 31)])
def test_the_shipped_clip_sees_what_its_preprocessor_gives(shipped, height, width):
    extractor = features.load_extractor("clip-glyphs")
    pixels = picture(height, width)
    read, _ = extractor.read(extractor.prepare(pixels)[None])
    seen = CLIPImageProcessorPil.from_pretrained(shipped)(pixels, return_tensors="pt")
    model = CLIPModel.from_pretrained(shipped)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[0, 1]]), **seen).image_embeds
    torch.testing.assert_close(read / read.norm(dim=1, keepdim=True), expected)
    assert extractor.text is not None
    assert extractor.text(["a"]).shape == (1, 5)


def test_the_shipped_clip_knows_the_words_of_its_tokenizer(shipped):
    extractor = features.load_extractor("clip-glyphs")
    assert extractor.domain == tuple("abcdeo")
    assert unseen(extractor, ["a b", "c"]) is None
    assert "have not seen" in (unseen(extractor, ["a b", "c x"]) or "")


@pytest.mark.parametrize(
    "change", [{"resample": 2}, {"size": {"shortest_edge": 32}}, {"image_mean": [0.5]}]
)
def test_a_preprocessor_of_another_way_is_refused(shipped, change):
    path = shipped / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SmidgenError, match=r"preprocessor_config\.json"):
        features.load_extractor("clip-glyphs")
