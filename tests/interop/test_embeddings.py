"""A new word as the file that other programs read: stock diffusers encodes with it as we do."""

import pytest
import torch
from safetensors.torch import load_file

import smidgen
from smidgen.cli.main import main
from smidgen.errors import SmidgenError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.pretrained import load_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.weights import moved

TOKEN, PROMPT = "<owl>", "a photo of <owl> at night"


def word_of(base, num_vectors=2):
    config = configure("textual-inversion", {"init_word": "owl", "num_vectors": num_vectors})
    with base.conditioner.open() as reader:
        built = build_delta(
            "textual-inversion",
            base,
            config,
            (),
            torch.Generator(),
            encoders=reader.encoders,
            token=TOKEN,
        )
    return moved(built, 0.2, seed=3)


@pytest.mark.parametrize("num_vectors", [1, 2])
def test_stock_diffusers_loads_the_word_of_one_encoder(tmp_path, num_vectors):
    folder = TINY_PIPELINES["sd"].save(tmp_path / "sd")
    base = load_base(folder)
    delta = word_of(base, num_vectors)
    delta.save(tmp_path / "delta.safetensors")
    out = tmp_path / "owl.safetensors"
    given = ("--base", folder, "--file", tmp_path / "delta.safetensors", "--output", out)
    assert main(["convert", "--format", "embeddings", *map(str, given)]) == 0
    stock = TINY_PIPELINES["sd"].load(folder)
    stock.load_textual_inversion(str(out))
    text, _ = stock.encode_prompt(PROMPT, "cpu", 1, False)
    torch.testing.assert_close(base.conditioner.encode([PROMPT], delta)["text"], text)


def test_stock_diffusers_loads_the_words_of_two_encoders_by_their_names(tmp_path):
    folder = TINY_PIPELINES["sdxl"].save(tmp_path / "sdxl")
    base = load_base(folder)
    delta = word_of(base, 1)
    rows = load_file(smidgen.export_embeddings(delta, base, output=tmp_path / "owl.safetensors"))
    assert set(rows) == {"clip_l", "clip_g"}
    stock = TINY_PIPELINES["sdxl"].load(folder)
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        stock.load_textual_inversion(
            {TOKEN: rows[key]},
            text_encoder=getattr(stock, f"text_encoder{number}"),
            tokenizer=getattr(stock, f"tokenizer{number}"),
        )
    text, _, pooled, _ = stock.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    found = base.conditioner.encode([PROMPT], delta)
    torch.testing.assert_close(found["text"], text)
    torch.testing.assert_close(found["pooled"], pooled)


def test_a_delta_that_is_more_than_a_word_is_refused(tmp_path):
    base = load_base(TINY_PIPELINES["sd"].save(tmp_path / "sd"))
    delta = tiny_delta(base, "lora").float()
    with pytest.raises(SmidgenError, match="a delta of lora is more than a new word"):
        smidgen.export_embeddings(delta, base, output=tmp_path / "owl.safetensors")
