"""A new word as the file that other programs read: stock diffusers encodes with it as we do."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import smidgen
from smidgen.cli.main import main
from smidgen.core.delta import Delta
from smidgen.errors import SmidgenError, UsageError
from smidgen.methods import configure
from smidgen.methods.build import build_delta
from smidgen.models.pretrained import load_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.images import write_photos
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


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_word_is_read_back_as_the_delta_that_it_was(tmp_path, kind):
    folder = TINY_PIPELINES[kind].save(tmp_path / kind)
    base = load_base(folder)
    delta = word_of(base)
    out = smidgen.export_embeddings(delta, base, output=tmp_path / f"{TOKEN}.safetensors")
    given = ("--base", folder, "--file", out, "--output", tmp_path / "delta.safetensors")
    assert main(["convert", "--format", "delta", *map(str, given)]) == 0
    found = Delta.load(tmp_path / "delta.safetensors")
    found.check_base(base.fingerprint, base.name)
    assert found.specs() == delta.specs()
    assert found.provenance.components == delta.provenance.components
    ours, theirs = delta.state_dict(), found.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_files_of_others_have_one_row_or_the_word_in_their_name(tmp_path):
    base = load_base(TINY_PIPELINES["sd"].save(tmp_path / "sd"))
    (rows,) = word_of(base, 1).state_dict().values()
    save_file({TOKEN: rows[0].half()}, tmp_path / "learned_embeds.safetensors")
    save_file({"emb_params": rows.half()}, tmp_path / f"{TOKEN}.safetensors")
    for name in ("learned_embeds", TOKEN):
        (word,) = smidgen.import_embeddings(tmp_path / f"{name}.safetensors", base).edits.values()
        assert word.token == TOKEN
        assert torch.equal(word.rows, rows.half().float())


def test_a_training_begins_from_a_word_of_others(tmp_path):
    folder = TINY_PIPELINES["sd"].save(tmp_path / "sd")
    base = load_base(folder)
    out = smidgen.export_embeddings(word_of(base), base, output=tmp_path / "owl.safetensors")
    write_photos(tmp_path / "photos")
    begun = smidgen.train(
        base,
        tmp_path / "photos",
        method="textual-inversion",
        method_config={"init_word": "owl", "num_vectors": 2},
        token=TOKEN,
        prompt="a photo of <owl>, {class}",
        init=out,
        steps=1,
        lr=1e-9,
        batch_size=2,
        trackers=(),
        output=tmp_path / "run",
        progress=False,
    )
    (rows,), (start,) = (one.state_dict().values() for one in (begun, word_of(base)))
    torch.testing.assert_close(rows, start)


def test_a_word_that_does_not_fit_is_refused_by_name(tmp_path):
    base = load_base(TINY_PIPELINES["sd"].save(tmp_path / "sd"))
    width = next(iter(word_of(base).state_dict().values())).shape[1]

    def refusal(kind, tensors, message):
        save_file(tensors, tmp_path / "word.safetensors")
        with pytest.raises(kind, match=message):
            smidgen.import_embeddings(tmp_path / "word.safetensors", base)

    rows = torch.ones(1, width)
    refusal(SmidgenError, {TOKEN: torch.ones(1, width + 1)}, f"have {width + 1} numbers, those of")
    refusal(UsageError, {"a": rows}, 'token "a" is a word that the base knows already')
    refusal(SmidgenError, {"clip_l": rows, "clip_g": rows.clone()}, "rows for clip_., clip_., and")
    refusal(SmidgenError, {TOKEN: rows / 0}, "not finite")
    save_file({TOKEN: rows}, tmp_path / "word.safetensors")
    with pytest.raises(SmidgenError, match='"glyphs" reads no prompts'):
        smidgen.import_embeddings(tmp_path / "word.safetensors", load_base("glyphs"))


def test_a_delta_that_is_more_than_a_word_is_refused(tmp_path):
    base = load_base(TINY_PIPELINES["sd"].save(tmp_path / "sd"))
    delta = tiny_delta(base, "lora").float()
    with pytest.raises(SmidgenError, match="a delta of lora is more than a new word"):
        smidgen.export_embeddings(delta, base, output=tmp_path / "owl.safetensors")
