"""A delta in a user's own stock pipeline: plain, offloaded, quantised; strength 0 is the base."""

import importlib.util
import logging

import diffusers
import pytest
import torch

from smidgen.core.fold import fold
from smidgen.errors import SmidgenError
from smidgen.hosts.host import find_host
from tests.interop.test_lora import _attention
from tests.tiny.deltas import lora


@pytest.fixture(scope="module")
def case(cases):
    return cases("sd")


@pytest.fixture(scope="module")
def plain(case):
    """The stock images, a delta of gains, offsets and LoRA, and the images with it."""
    pipeline = case.pipeline
    deltas = (case.delta, lora(pipeline.unet, share=0.5, strength=0.2))
    with deltas[0].attach(pipeline.unet), deltas[1].attach(pipeline.unet):
        expected = case.draw(pipeline)
    assert (expected - case.expected).abs().max() > 0.005, "the LoRA must show beside the rest"
    assert torch.equal(case.draw(pipeline), case.stock), "detached, the pipeline is the stock one"
    return case.stock, deltas, expected


def test_strength_zero_gives_the_stock_images(case, plain):
    stock, deltas, expected = plain
    pipeline = case.pipeline
    with (
        deltas[0].attach(pipeline.unet, strength=0.0),
        deltas[1].attach(pipeline.unet, strength=0.0),
    ):
        torch.testing.assert_close(case.draw(pipeline), stock, rtol=0, atol=1e-6)
    with deltas[0].attach(pipeline.unet, strength=1.0), deltas[1].attach(pipeline.unet):
        assert torch.equal(case.draw(pipeline), expected)


@pytest.mark.parametrize("first", ["attach", "offload"])
def test_weights_that_come_and_go_by_accelerates_hooks_change_nothing(case, plain, first):
    """`enable_sequential_cpu_offload` needs an accelerator; this is what it does, on the CPU."""
    from accelerate import cpu_offload

    stock, deltas, expected = plain
    pipeline = case.fresh()
    unet = pipeline.unet
    if first == "offload":
        cpu_offload(unet, execution_device=torch.device("cpu"))
        assert next(unet.parameters()).is_meta
    with deltas[0].attach(unet), deltas[1].attach(unet):
        if first == "attach":
            cpu_offload(unet, execution_device=torch.device("cpu"))
        assert torch.equal(case.draw(pipeline), expected)
    assert torch.equal(case.draw(pipeline), stock)


def test_whole_models_that_come_and_go_change_nothing(case, plain):
    """As `enable_model_cpu_offload` does it: hooks on the components, one behind the other."""
    from accelerate import cpu_offload_with_hook

    _, deltas, expected = plain
    pipeline = case.fresh()
    device = torch.device("cpu")
    pipeline.text_encoder, hook = cpu_offload_with_hook(pipeline.text_encoder, device)
    pipeline.unet, hook = cpu_offload_with_hook(pipeline.unet, device, prev_module_hook=hook)
    with deltas[0].attach(pipeline.unet), deltas[1].attach(pipeline.unet):
        assert torch.equal(case.draw(pipeline), expected)


def quanto():
    return diffusers.QuantoConfig(weights_dtype="int8")


def bitsandbytes_8bit():
    return diffusers.BitsAndBytesConfig(load_in_8bit=True)


def bitsandbytes_4bit():
    return diffusers.BitsAndBytesConfig(load_in_4bit=True)


QUANTISED = {
    "quanto, 8 bit": ("optimum.quanto", quanto),
    "bitsandbytes, 8 bit": ("bitsandbytes", bitsandbytes_8bit),
    "bitsandbytes, 4 bit": ("bitsandbytes", bitsandbytes_4bit),
}


@pytest.mark.parametrize("library", QUANTISED)
def test_a_quantised_base_takes_deltas_and_refuses_folding(case, library):
    module, config = QUANTISED[library]
    if not _installed(module):
        pytest.skip(f"{module} is not installed")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    try:
        unet = diffusers.UNet2DConditionModel.from_pretrained(
            case.folder / "unet", quantization_config=config(), torch_dtype=torch.float32
        )
    except (RuntimeError, ValueError, ImportError) as error:
        pytest.skip(f"{module} does not quantise on this machine: {str(error).splitlines()[0]}")
    unet.requires_grad_(False)
    pipeline = case.tiny.load(case.folder, unet=unet)
    stock = case.draw(pipeline)
    delta = lora(unet, strength=0.3, chosen=_attention)
    with delta.attach(unet, strength=0.0):
        torch.testing.assert_close(case.draw(pipeline), stock, rtol=0, atol=1e-6)
    with delta.attach(unet):
        assert (case.draw(pipeline) - stock).abs().max() > 1e-3
        delta.requires_grad_(True)
        x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 32)
        unet(
            x, torch.tensor([3, 700]), encoder_hidden_states=text
        ).sample.square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in delta.parameters())
    assert all(parameter.grad is None for parameter in unet.parameters())
    with pytest.raises(SmidgenError, match="4 or 8 bit"):
        fold(delta, unet.state_dict(), find_host(unet).folds)


def _installed(module):
    top = module.partition(".")[0]
    return (
        importlib.util.find_spec(top) is not None and importlib.util.find_spec(module) is not None
    )
