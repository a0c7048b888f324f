"""Trainings whose frozen base is kept in half precision: their deltas, resumption, losses."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import smidgen
from smidgen.core.delta import Delta
from smidgen.errors import UsageError
from smidgen.models.precision import check_base_precision
from smidgen.models.pretrained import load_base
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.text import clip_text, clip_tokenizer

SHORT = {"batch_size": 2, "validation_share": 0.2, "trackers": (), "progress": False, "lr": 0.01}


def sd2(folder):
    """Stable Diffusion 2: v, and OpenCLIP."""
    text = clip_text(clip_tokenizer(folder / "words"), hidden_act="gelu")
    scheduler = {"prediction_type": "v_prediction"}
    return TINY_PIPELINES["sd"].save(folder / "sd2", scheduler=scheduler, text_encoder=text)


MODELS = {
    "sd1": lambda folder: TINY_PIPELINES["sd"].save(folder),
    "sd2": sd2,
    "sdxl": lambda folder: TINY_PIPELINES["sdxl"].save(folder),
    "flow": lambda folder: TINY_PIPELINES["sd3"].save(folder),
}


def halve(folder):
    """All its networks in float16 files."""
    for path in folder.rglob("*.safetensors"):
        halved = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(halved, path, metadata={"format": "pt"})
    return folder


def train(base, root, name, **settings):
    """A delta of LoRA and its log."""
    output = root / name
    delta = smidgen.train(
        base,
        root / "photos",
        method="lora",
        output=output,
        cache_dir=root / "cache",
        **SHORT | settings,
    )
    return delta, [json.loads(line) for line in (output / "log.jsonl").open()]


@pytest.mark.parametrize("model", MODELS)
def test_a_base_in_bf16_trains_a_delta_in_float32_and_resumes_bit_for_bit(tmp_path, model):
    folder = MODELS[model](tmp_path / "base")
    write_photos(tmp_path / "photos")
    base = load_base(folder, base_precision="bf16")
    assert base.precision == "fp32", "what it computes in"
    assert base.given == {"base_precision": "bf16"}
    before = {name: tensor.clone() for name, tensor in base.denoiser.state_dict().items()}
    assert {p.dtype for p in base.denoiser.parameters()} == {torch.bfloat16}

    whole, log = train(base, tmp_path, "whole", steps=4, checkpoint_every=2)
    train(base, tmp_path, "parts", steps=2, checkpoint_every=2)
    parts, _ = train(base, tmp_path, "parts", steps=4, checkpoint_every=2)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    after = base.denoiser.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    ours, theirs = whole.state_dict(), parts.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    _, wide = train(load_base(folder), tmp_path, "wide", steps=4, checkpoint_every=2)
    for mine, its in zip(log, wide, strict=True):
        for name in {"loss", "validation_loss"} & set(its):
            # weights are rounded to 8 bit of precision, and random networks amplify that a little
            assert mine[name] == pytest.approx(its[name], rel=0.05)
    # which precision it is kept in is no part of what a delta belongs to
    Delta.load(tmp_path / "parts" / "delta.safetensors").check_base(
        load_base(folder).fingerprint, "the same"
    )
    with pytest.raises(UsageError, match="base_precision"):
        train(load_base(folder), tmp_path, "parts", steps=5)


def test_a_pipeline_in_fp16_files_is_kept_so_and_trains_as_if_it_were_wide(tmp_path):
    folder = halve(TINY_PIPELINES["sd"].save(tmp_path / "base"))
    write_photos(tmp_path / "photos")
    kept, wide = load_base(folder), load_base(folder, base_precision="fp32")
    assert {p.dtype for p in kept.denoiser.parameters()} == {torch.float16}
    assert {p.dtype for p in wide.denoiser.parameters()} == {torch.float32}
    (one, _), (other, _) = (
        train(base, tmp_path, name, steps=2) for base, name in ((kept, "kept"), (wide, "wide"))
    )
    ours, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    images = [
        smidgen.sample(base, prompts="a fox", steps=2, guidance=2.0, seed=1)[0].tobytes()
        for base in (kept, wide)
    ]
    assert images[0] == images[1]
    # to compute in half precision all of it must be
    half = load_base(folder, dtype=torch.bfloat16)
    assert (half.precision, half.denoiser.dtype) == ("bf16", torch.bfloat16)


def test_a_precision_that_cannot_be_is_refused():
    with pytest.raises(UsageError, match=r'unknown base_precision "fp8"; choose from: fp32, bf16'):
        check_base_precision("fp8")
    with pytest.raises(UsageError, match="fp32 is wider than"):
        load_base("glyphs", base_precision="fp32", dtype=torch.float16)


def test_the_estimate_has_half_the_bytes_of_the_weights():
    settings = {"method": "lora", "batch_size": 1}
    wide = smidgen.inspect("glyphs", **settings)["memory"]
    half = smidgen.inspect("glyphs", base_precision="bf16", **settings)["memory"]
    assert half["weights"] == wide["weights"] // 2
    assert half["delta"] == wide["delta"]
