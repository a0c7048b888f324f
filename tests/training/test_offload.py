"""Trainings whose base has its weights outside the device, here the CPU: the same bits as ever."""

import numpy as np
import pytest
import torch

import smidgen
from smidgen.core.storage import move, offload, outside, repeated_layers, runs_on
from smidgen.core.widening import PACKED
from smidgen.errors import UsageError
from smidgen.models.pretrained import load_base
from tests.tiny.images import write_photos
from tests.tiny.pipelines import TINY_PIPELINES
from tests.tiny.weights import numbers
from tests.training.test_base_precision import train


@pytest.mark.slow
@pytest.mark.parametrize("model", ["glyphs", "sd", "sd3"])
def test_a_delta_trains_resumes_and_draws_as_with_all_weights_on_the_device(tmp_path, model):
    folder = model if model == "glyphs" else TINY_PIPELINES[model].save(tmp_path / "base")
    write_photos(tmp_path / "photos")
    # a DiT of ours whose modules are watched goes by hooks
    here, there = load_base(folder), load_base(folder)
    offload(there.denoiser, "cpu", ahead=True)
    before = {name: tensor.clone() for name, tensor in there.denoiser.state_dict().items()}
    settings = {"steps": 4, "checkpoint_every": 2, "fast": False, "gradient_checkpointing": True}
    whole, log = train(here, tmp_path, "here", **settings)
    train(there, tmp_path, "there", **settings | {"steps": 2})
    parts, other = train(there, tmp_path, "there", **settings)
    ours, theirs = whole.state_dict(), parts.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    lines = [
        [{k: v for k, v in line.items() if "loss" in k} for line in one] for one in (log, other)
    ]
    assert lines[0] == lines[1]
    after = there.denoiser.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    drawn = {"classes": parts.provenance.classes[:1]} if model == "glyphs" else {"prompts": "a fox"}
    images = [
        np.asarray(smidgen.sample(base, delta=whole, steps=2, seed=1, **drawn)[0], int)
        for base in (here, there)
    ]
    np.testing.assert_allclose(*images, atol=model == "glyphs")  # by hooks, within a level
    # where weights are is nothing that a run is known by
    report = (tmp_path / "there" / "run.json").read_text()
    train(here, tmp_path, "there", **settings)
    assert (tmp_path / "there" / "run.json").read_text() == report, "finished"


@pytest.mark.parametrize("precision", [None, "bf16", "int8", "nf4"])
@pytest.mark.parametrize("model", ["glyphs", "sd"])
def test_a_base_is_loaded_with_the_weights_of_its_blocks_outside(tmp_path, model, precision):
    folder = model if model == "glyphs" else TINY_PIPELINES[model].save(tmp_path / "base")
    plain = load_base(folder, base_precision=precision)
    base = load_base(folder, base_precision=precision, device="meta", offload=True)
    assert base.device == runs_on(base.denoiser) == torch.device("meta")
    blocks, whole = (
        [layer._buffers.get(PACKED, layer.weight) for layer in repeated_layers(one.denoiser)]
        for one in (base, plain)
    )
    assert set(numbers(base.denoiser).values()) == set(blocks)
    assert all(map(torch.equal, blocks, whole))
    assert (base.fingerprint, base.given) == (plain.fingerprint, plain.given)
    move(base.denoiser, "meta")
    assert len(outside(base.denoiser)) == len(blocks)


def test_what_cannot_be_is_refused(tmp_path):
    write_photos(tmp_path / "photos")
    with pytest.raises(UsageError, match=r"offload keeps weights .* leave it out"):
        load_base("glyphs", offload=True)
    with pytest.raises(UsageError, match=r"offload keeps weights .* leave it out"):
        smidgen.inspect("glyphs", offload=True, batch_size=1)
    base = load_base("glyphs")
    offload(base.denoiser, "cpu")
    with pytest.raises(UsageError, match="compile and offload do not go together"):
        train(base, tmp_path, "compiled", steps=1, compile=True)
    with pytest.raises(UsageError, match="offload is for a base that is not loaded yet"):
        smidgen.inspect(base, offload=True, batch_size=1)


@pytest.mark.slow
def test_the_estimate_has_one_weight_of_those_outside_on_the_device():
    settings = {"method": "lora", "batch_size": 1, "device": "cuda", "base_precision": "int8"}
    here = smidgen.inspect("sd-1.5", **settings)["memory"]
    there = smidgen.inspect("sd-1.5", offload=True, **settings)["memory"]
    largest = 2560 * 1280 * 9  # of the first convolution on the way up
    assert there["weights"] == here["weights"] - there["offloaded"] + largest
    assert there["offloaded"] > 0.99 * 859_520_964
    assert "offloaded" not in here
    # each is brought in before it is widened
    assert here["step"] <= there["step"] <= here["step"] + 2 * largest
    assert there["total"] == sum(
        there[part] for part in ("weights", "delta", "optimizer", "average", "step")
    )
