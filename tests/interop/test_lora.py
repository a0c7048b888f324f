"""LoRA to and from PEFT, diffusers and kohya: the same images, the same weights, or a refusal."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from smidgen.core.arithmetic import scaled
from smidgen.core.bypass import Bottleneck, Bypass
from smidgen.core.delta import Delta
from smidgen.core.edits import Shift
from smidgen.core.sites import Site
from smidgen.errors import SmidgenError, UsageError
from smidgen.hosts.host import find_family
from smidgen.hosts.renaming import modules_of, rename
from smidgen.interop.lora import read_lora, write_lora
from smidgen.models.dit_diffusers import to_diffusers
from tests.tiny.bases import base_of
from tests.tiny.deltas import changed, lora, provenance
from tests.tiny.networks import DIT, SD_3_5, dit, network

MODELS = {
    "sd": lambda: network("sd"),
    "sdxl": lambda: network("sdxl"),
    "sd3.5": lambda: network("sd3", **SD_3_5, num_layers=3),
    "flux": lambda: network("flux", num_layers=2, num_single_layers=2),
}


# -- ours in other programs ------------------------------------------------------------------------


READ_BY_DIFFUSERS = [(family, "peft") for family in ("sd", "sdxl", "sd3", "flux")]
READ_BY_DIFFUSERS += [("sd", "kohya"), ("sdxl", "kohya")]


@pytest.mark.parametrize(("family", "form"), READ_BY_DIFFUSERS)
def test_pipelines_draw_the_same_images_with_our_file(cases, tmp_path, family, form):
    """Flux in kohya's names is read by diffusers only at FLUX.1's width; SD3 not at all: the
    weights of those files are compared below.
    """
    case = cases(family)
    # kohya's trainer gives no LoRA to layers outside the blocks, and diffusers reads none there
    chosen, strength = (_attention, 1.0) if form == "kohya" else (None, 0.2)
    delta = lora(case.denoiser, share=0.5, strength=strength, chosen=chosen)
    with delta.attach(case.denoiser):
        expected = case.draw(case.pipeline)
    assert (expected - case.stock).abs().max() > 0.01, "the LoRA must show"
    path = write_lora(delta, tmp_path / "ours.safetensors", case.denoiser, format=form)
    try:
        case.pipeline.load_lora_weights(path)
        torch.testing.assert_close(case.draw(case.pipeline), expected, rtol=0, atol=1e-3)
    finally:
        case.pipeline.unload_lora_weights()
    assert torch.equal(case.draw(case.pipeline), case.stock), "other tests draw with it too"


def _attention(linear):
    parts = linear.module.split(".")
    return linear.rows is None and "transformer_blocks" in parts and "attn1" in parts


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_kohya_factors_are_the_change_of_the_original_weights(tmp_path, make):
    """Whatever is stacked or swapped there: the file's products are the weights' difference."""
    model = make()
    delta = lora(model, share=0.7)
    tensors = load_file(write_lora(delta, tmp_path / "k.safetensors", model, format="kohya"))
    before = {key: tensor.double() for key, tensor in model.state_dict().items()}
    after = changed(before, delta)
    if make is not MODELS["sd"]:
        renaming = find_family(model).original.names(modules_of(before))
        before, after = (rename(state, renaming, "the file") for state in (before, after))
    moved = {key.removesuffix(".weight") for key in before if not before[key].equal(after[key])}
    names = {f"lora_unet_{name.replace('.', '_')}": name for name in moved}
    assert {key.partition(".")[0] for key in tensors} == set(names)
    for joined, name in names.items():
        down, up, alpha = (
            tensors[f"{joined}.{part}"].double()
            for part in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        product = alpha / len(down) * (up.flatten(1) @ down.flatten(1))
        difference = after[f"{name}.weight"] - before[f"{name}.weight"]
        torch.testing.assert_close(product.view(difference.shape), difference, rtol=1e-6, atol=1e-6)


def test_our_dit_is_named_as_that_of_diffusers(tmp_path):
    """Rows of the fused qkv are three linears there; a LoRA on all of it goes to each of them."""
    model = dit()
    delta = lora(model, chosen=lambda one: one.role in ("q", "v", "o", "qkv", "ff1"))
    assert any(edit.rows for edit in delta.edits.values())
    tensors = load_file(write_lora(delta, tmp_path / "p.safetensors", model, format="peft"))
    before = {key: tensor.double() for key, tensor in model.state_dict().items()}
    after = to_diffusers(changed(before, delta), DIT.depth)
    before = to_diffusers(before, DIT.depth)
    moved = {key for key in before if not before[key].equal(after[key])}
    assert {f"transformer.{key.removesuffix('.weight')}.lora_A.weight" for key in moved} <= set(
        tensors
    )
    for key in moved:
        name = f"transformer.{key.removesuffix('.weight')}"
        product = (
            tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()
        )
        torch.testing.assert_close(product, after[key] - before[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["peft", "kohya"])
@pytest.mark.parametrize("make", [*MODELS.values(), dit], ids=[*MODELS, "dit"])
def test_a_written_file_comes_back_as_a_delta_of_the_same_weights(tmp_path, make, form):
    model = make()
    chosen = (lambda one: one.role in ("q", "v", "o")) if make not in MODELS.values() else None
    delta = lora(model, share=0.7, chosen=chosen)
    path = write_lora(delta, tmp_path / "file.safetensors", model, format=form)
    read = read_lora(path, base_of(model))
    ours, theirs = (changed(model.state_dict(), one) for one in (delta, read))
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=1e-6, atol=1e-6, msg=key)
    if form == "peft":
        assert list(read.edits) == list(delta.edits)
    assert (read.provenance.method, read.provenance.fingerprint) == ("lora", "sketch1:none")


# -- others' files here ----------------------------------------------------------------------------


def _peft_unet(**settings):
    from peft import LoraConfig

    model = network("sd")
    model.add_adapter(LoraConfig(target_modules=["to_q", "to_v", "conv1", "proj_in"], **settings))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if {"lora_A", "lora_B"} & set(name.split(".")):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def unet_output(model):
    generator = torch.Generator().manual_seed(1)
    x, text = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 5, 32)))
    with torch.no_grad():
        return model(x, torch.tensor([3, 700]), encoder_hidden_states=text).sample


PEFT = {
    "alpha": {"r": 4, "lora_alpha": 6},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"to_q": 2},
        "alpha_pattern": {"to_q": 5},
    },
    "rank-stabilised": {"r": 4, "lora_alpha": 3, "use_rslora": True},
}


@pytest.mark.parametrize("settings", PEFT.values(), ids=PEFT)
def test_files_of_diffusers_with_pefts_settings_give_their_output(tmp_path, settings):
    from diffusers.training_utils import _collate_lora_metadata
    from peft.utils import get_peft_model_state_dict

    theirs, model = _peft_unet(**settings), network("sd")
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(theirs),
        **_collate_lora_metadata({"unet": theirs}),
    )
    delta = read_lora(tmp_path / "pytorch_lora_weights.safetensors", base_of(model))
    with delta.attach(model):
        found = unet_output(model)
    expected = unet_output(theirs)
    assert (unet_output(model) - expected).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_peft_folder_with_its_configuration_is_read(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = network("sd")
    config = LoraConfig(r=2, lora_alpha=7, target_modules=["to_k"], init_lora_weights=False)
    torch.manual_seed(0)
    theirs = get_peft_model(network("sd"), config).eval()
    theirs.save_pretrained(tmp_path)
    with read_lora(tmp_path, base_of(model)).attach(model):
        torch.testing.assert_close(unet_output(model), unet_output(theirs), rtol=1e-4, atol=1e-4)


def test_a_lora_that_is_not_finite_is_not_written(tmp_path):
    model = network("sd")
    delta = lora(model, share=0.1)
    with torch.no_grad():
        next(iter(delta.parameters()))[0] = float("nan")
    for form in ("peft", "kohya"):
        with pytest.raises(SmidgenError, match=r"cannot write .*not finite"):
            write_lora(delta, tmp_path / "l.safetensors", model, format=form)
    assert not (tmp_path / "l.safetensors").exists()


def test_a_lora_at_strength_nought_is_written_as_one_that_does_nothing(tmp_path):
    model = network("sd")
    silent = scaled(lora(model, share=0.1), 0.0)
    path = write_lora(silent, tmp_path / "l.safetensors", model, format="kohya")
    state = model.state_dict()
    read = changed(state, read_lora(path, base_of(model)))
    assert all(torch.equal(read[name], tensor.double()) for name, tensor in state.items())


def test_what_a_lora_file_cannot_hold_is_refused_by_name(tmp_path):
    model = network("sd")
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    here, there = Site(name, "in"), Site(name)
    body = Bottleneck(64, 2, 64, activation="identity", bias=False)
    across = Site("mid_block.attentions.0.transformer_blocks.0.attn1.to_k")
    for edit, reason in [
        (Shift(there, 64), '"e" is a shift'),
        (
            Bypass(here, (there,), Bottleneck(64, 2, 64, activation="relu", bias=False)),
            "not linear",
        ),
        (Bypass(here, (there,), Bottleneck(64, 2, 64, activation="identity", bias=True)), "biases"),
        (Bypass(here, (across,), body), "from one module to another"),
    ]:
        delta = Delta({"e": edit}, provenance())
        with pytest.raises(SmidgenError, match=reason):
            write_lora(delta, tmp_path / "x.safetensors", model, format="peft")
    with pytest.raises(UsageError, match='unknown format "lycoris"'):
        write_lora(delta, tmp_path / "x.safetensors", model, format="lycoris")
    ours = dit()
    time = lora(ours, chosen=lambda one: one.module == "t_embedder.mlp.0")
    with pytest.raises(SmidgenError, match="repeats in every block"):
        write_lora(time, tmp_path / "x.safetensors", ours, format="peft")
    assert not (tmp_path / "x.safetensors").exists()
