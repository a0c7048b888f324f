"""LoRA of the base that ships, in the names of kohya's scripts (ComfyUI, A1111) and of PEFT, and
back; read by diffusers' own loader, and beside the original code's network.
"""

import pytest
import torch

import smidgen
from smidgen.core.weights import open_safetensors
from smidgen.interop.original_unet import for_original_unet
from smidgen.models.base import Base
from smidgen.models.names import EMBEDDED
from tests.tiny.deltas import lora
from tests.tiny.original_unet import OriginalUNet


@pytest.fixture(scope="module")
def base() -> Base:
    return smidgen.load_base("glyphs-text")


@pytest.fixture(scope="module")
def delta(base):
    """Beside every linear and convolution, as `targets = ["all"]` trains it."""
    return lora(base.denoiser, strength=0.05, fingerprint=base.fingerprint)


def inputs():
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return x, torch.tensor([30, 700]), torch.randn(2, 5, 128, generator=generator)


def output(unet):
    x, t, text = inputs()
    with torch.no_grad():
        return unet(x, t, text, return_dict=False)[0]


@pytest.fixture(scope="module")
def tuned(base, delta):
    with delta.attach(base.denoiser):
        found = output(base.denoiser)
    assert float((found - output(base.denoiser)).abs().max()) > 0.05
    return found


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_it_goes_out_and_comes_back(base, delta, tuned, tmp_path, format):
    path = tmp_path / "lora.safetensors"
    smidgen.export_lora(delta, base, format=format, output=path)
    back = smidgen.import_lora(path, base)
    assert list(back.edits) == list(delta.edits)
    with back.attach(base.denoiser):
        close(output(base.denoiser), tuned)


@pytest.mark.parametrize("format", ["kohya", "peft"])
def test_diffusers_reads_it(base, delta, tuned, tmp_path, format):
    from diffusers import StableDiffusionPipeline

    chosen = delta
    if format == "kohya":  # of which diffusers reads attentions alone
        chosen = lora(
            base.denoiser,
            strength=0.05,
            fingerprint=base.fingerprint,
            chosen=lambda one: one.role.removeprefix("cross.") in ("q", "k", "v", "o"),
        )
        with chosen.attach(base.denoiser):
            tuned = output(base.denoiser)
    path = tmp_path / "lora.safetensors"
    smidgen.export_lora(chosen, base, format=format, output=path)
    pipe = StableDiffusionPipeline.from_pretrained(EMBEDDED / "glyphs-text")
    pipe.load_lora_weights(path)
    close(output(pipe.unet), tuned)


def test_the_keys_are_those_of_kohyas_scripts(base, delta, tmp_path):
    path = tmp_path / "lora.safetensors"
    smidgen.export_lora(delta, base, format="kohya", output=path)
    modules = {name.replace(".", "_") for name, _ in base.denoiser.named_modules()}
    with open_safetensors(path) as file:
        keys = list(file.keys())
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight" in keys
    for key in keys:
        module, _, tail = key.partition(".")
        assert module.startswith("lora_unet_")
        assert module.removeprefix("lora_unet_") in modules
        assert tail in ("lora_down.weight", "lora_up.weight", "alpha")


def test_it_acts_in_the_original_codes_network(base, delta, tuned):
    original = OriginalUNet(base.denoiser)
    x, t, text = inputs()
    with for_original_unet(delta, original).attach(original), torch.no_grad():
        close(original(x, t, text), tuned)
