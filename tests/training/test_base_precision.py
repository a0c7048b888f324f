"""Trainings whose frozen base is kept in few bits: their deltas, resumption, losses."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import smidgen
from smidgen.core.delta import Delta
from smidgen.core.normal_float import num_bytes
from smidgen.core.storage import bytes_of, repeated_layers
from smidgen.core.widening import PACKED, VALUES
from smidgen.errors import SmidgenError, UsageError
from smidgen.models.architectures import meta_network
from smidgen.models.precision import check_base_precision
from smidgen.models.pretrained import load_base
from tests.tiny.deltas import tiny_delta
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.text import clip_text, clip_tokenizer
from tests.tiny.weights import numbers

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


# of what is kept: the precision of its weights, and how far losses are from those in float32
KEPT = {
    "bf16": ({torch.bfloat16}, 0.05),
    "int8": ({torch.int8, torch.float32}, 0.1),
    "nf4": ({torch.uint8, torch.float32}, 0.3),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kept"),
    [
        *((model, "bf16") for model in MODELS),
        *((model, kept) for kept in ("int8", "nf4") for model in ("sd1", "flow")),
    ],
)
def test_a_base_in_few_bits_trains_a_delta_in_float32_and_resumes_bit_for_bit(
    tmp_path, model, kept
):
    folder = MODELS[model](tmp_path / "base")
    write_photos(tmp_path / "photos")
    stored, rounding = KEPT[kept]
    base = load_base(folder, base_precision=kept)
    assert base.precision == "fp32", "what it computes in"
    assert base.given == {"base_precision": kept}
    before = {name: tensor.clone() for name, tensor in numbers(base.denoiser).items()}
    assert {p.dtype for p in base.denoiser.parameters()} == stored

    whole, log = train(base, tmp_path, "whole", steps=4, checkpoint_every=2)
    train(base, tmp_path, "parts", steps=2, checkpoint_every=2)
    parts, _ = train(base, tmp_path, "parts", steps=4, checkpoint_every=2)
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    after = numbers(base.denoiser)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    ours, theirs = whole.state_dict(), parts.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    _, wide = train(load_base(folder), tmp_path, "wide", steps=4, checkpoint_every=2)
    for mine, its in zip(log, wide, strict=True):
        for name in {"loss", "validation_loss"} & set(its):
            # weights are rounded, and random networks amplify that a little
            assert mine[name] == pytest.approx(its[name], rel=rounding)
    # which precision it is kept in is no part of what a delta belongs to
    Delta.load(tmp_path / "parts" / "delta.safetensors").check_base(
        load_base(folder).fingerprint, "the same"
    )
    with pytest.raises(UsageError, match="base_precision"):
        train(load_base(folder), tmp_path, "parts", steps=5)


@pytest.mark.slow
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


@pytest.mark.parametrize(("precision", "dtype"), [("int8", torch.int8), ("nf4", torch.uint8)])
def test_quantised_is_what_a_dit_and_half_precision_files_have_of_weights(
    tmp_path, precision, dtype
):
    base = load_base("glyphs", base_precision=precision)
    assert base.fingerprint == load_base("glyphs").fingerprint
    assert {p.dtype for p in base.denoiser.parameters()} == {dtype, torch.float32}
    refusal = f'"glyphs" is kept in {precision}.*without base_precision {precision}'
    with pytest.raises(SmidgenError, match=refusal):
        smidgen.fold(base, tiny_delta(base, "bitfit"), format="dit", output=tmp_path / "folded")
    kept = load_base(halve(TINY_PIPELINES["sd"].save(tmp_path / "base")), base_precision=precision)
    assert {p.dtype for p in kept.denoiser.parameters()} == {dtype, torch.float16}
    assert kept.precision == "fp32"
    image = smidgen.sample(kept, prompts="a fox", steps=2, seed=1)[0]
    assert image.size == kept.image_size
    half = load_base(tmp_path / "base", base_precision=precision, dtype=torch.bfloat16)
    assert half.precision == "bf16"
    assert smidgen.sample(half, prompts="a fox", steps=2, seed=1)


def test_a_pipeline_that_was_quantised_before_is_refused_with_what_to_do(tmp_path):
    folder = TINY_PIPELINES["sd"].save(tmp_path / "base")
    for part in ("unet", "text_encoder"):
        config = folder / part / "config.json"
        plain = config.read_text()
        quantised = json.loads(plain) | {"quantization_config": {"quant_method": "quanto"}}
        config.write_text(json.dumps(quantised))
        with pytest.raises(
            SmidgenError, match=f"{part} was quantised by another .* int8 or nf4 to keep"
        ):
            load_base(folder)
        config.write_text(plain)


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


@pytest.mark.slow
def test_the_estimate_has_a_byte_for_each_weight_in_8_bit():
    settings = {"method": "lora", "batch_size": 1, "base_precision": "int8", "device": "cuda"}
    memory = smidgen.inspect("sd-1.5", **settings)["memory"]
    network = meta_network("sd-1.5")
    layers = [m for m in network.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    weights = sum(layer.weight.numel() for layer in layers)
    scales = sum(len(layer.weight) for layer in layers)
    others = sum(parameter.numel() for parameter in network.parameters()) - weights
    assert memory["weights"] == weights + 4 * scales + 4 * others
    base = load_base("glyphs", base_precision="int8")
    estimate = smidgen.inspect("glyphs", **settings)["memory"]
    real = sum(p.numel() * p.element_size() for p in base.denoiser.parameters())
    of_8_bit = [p for p in base.denoiser.parameters() if p.dtype == torch.int8]
    assert estimate["weights"] == real + 4 * sum(map(len, of_8_bit))


@pytest.mark.slow
def test_the_estimate_has_half_a_byte_for_each_weight_in_4_bit_and_its_scales():
    settings = {"method": "lora", "batch_size": 1, "base_precision": "nf4", "device": "cuda"}
    memory = smidgen.inspect("sd-1.5", **settings)["memory"]
    network = meta_network("sd-1.5")
    sizes = [layer.weight.numel() for layer in repeated_layers(network)]
    others = sum(parameter.numel() for parameter in network.parameters()) - sum(sizes)
    assert memory["weights"] == pytest.approx(sum(sizes) * 4.127 / 8 + 4 * others, rel=0.002)
    assert sum(sizes) > 0.99 * 859_520_964
    base = load_base("glyphs", base_precision="nf4")
    estimate = smidgen.inspect("glyphs", **settings)["memory"]["weights"]
    layers = repeated_layers(base.denoiser)
    packed = [layer._buffers[name] for layer in layers for name in (PACKED, VALUES)]
    others = [parameter for parameter in base.denoiser.parameters() if not parameter.is_meta]
    assert estimate == bytes_of(packed + others)


@pytest.mark.slow
@pytest.mark.parametrize("elsewhere", [{"offload": True}, {"num_shards": 2}])
def test_the_estimate_of_weights_in_4_bit_that_are_elsewhere(elsewhere):
    settings = {"method": "lora", "batch_size": 1, "base_precision": "nf4", "device": "cuda"}
    here = smidgen.inspect("sd-1.5", **settings)["memory"]
    there = smidgen.inspect("sd-1.5", **elsewhere, **settings)["memory"]
    largest = num_bytes(2560 * 1280 * 9)  # of the first convolution on the way up
    gone = there["offloaded" if "offload" in elsewhere else "in_others"]
    assert there["weights"] == here["weights"] - gone + largest
    blocks = sum(num_bytes(one.weight.numel()) for one in repeated_layers(meta_network("sd-1.5")))
    assert gone == pytest.approx(blocks / (1 if "offload" in elsewhere else 2), abs=1000)
