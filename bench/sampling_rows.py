"""Forward passes and whole samplings for bench/speed.py, beside diffusers and PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import Tensor, nn

from bench.rows import (
    CLASSES,
    SHAPES,
    Rows,
    Shape,
    batch_of,
    delta_of,
    lively,
    no_grad,
    own,
    plain,
    timed,
    with_delta,
)
from bench.training_rows import FOUR
from smidgen.core.bank import Bank
from smidgen.diffusion.guidance import guide
from smidgen.diffusion.process import Diffusion
from smidgen.diffusion.schedule import Schedule
from smidgen.fast.acting import scheduled

STEPS = 10
MIXED, RESIDENT = 16, 64
GUIDANCE = 4.0
NULL = 1000  # diffusers' pipeline knows no other label of no class


def forwards_of(name: str, images: int) -> Rows:
    """A forward pass of so many images, each guided, as sampling calls it."""
    shape = SHAPES[name]
    network, reference, batch = own(shape), plain(shape, difffit=False), batch_of(shape, 2 * images)
    delta, run = delta_of(network, "difffit"), no_grad(network, batch)
    return {
        "plain PyTorch": no_grad(reference, batch),
        "diffusers": no_grad(theirs(shape), batch),
        "base": with_delta(network, None, run, fast=True),
        "DiffFit, hooks": with_delta(network, delta, run, fast=False),
        "DiffFit, fast": with_delta(network, delta, run, fast=True),
    }


def mixed_of(name: str) -> Rows:
    """A guided forward pass of 16 images, each with another one of 64 deltas."""
    shape = SHAPES[name]
    network, batch = own(shape), batch_of(shape, 2 * MIXED)
    run = no_grad(network, batch)
    rows: Rows = {"base": with_delta(network, None, run, fast=True)}
    for method, options in (("difffit", {}), ("lora", {"targets": FOUR})):
        deltas = [delta_of(network, method, **options) for _ in range(RESIDENT)]
        bank = Bank(deltas)
        bank.choose(torch.arange(0, RESIDENT, RESIDENT // MIXED))
        for words, delta in (("one delta", deltas[0]), ("16 of 64 deltas", bank)):
            for fast in (False, True):
                row = f"{method}, {words}, {'fast' if fast else 'hooks'}"
                rows[row] = with_delta(network, delta, run, fast=fast)
    if (theirs := peft_mixed(shape)) is not None:
        rows |= {"plain PyTorch": no_grad(plain(shape, difffit=False), batch)}
        rows |= {"LoRA, PEFT, 16 of 64": no_grad(theirs, batch)}
    return rows


def peft_mixed(shape: Shape) -> Callable[..., Tensor] | None:
    """PEFT's batch of images with another LoRA each, None where PEFT is not installed."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        return None
    wanted = LoraConfig(r=8, target_modules=["qkv", "proj", "mlp.0", "mlp.2"])
    model: Any = get_peft_model(plain(shape, difffit=False), wanted, "0")
    for number in range(1, RESIDENT):
        model.add_adapter(str(number), wanted)
    model.eval()
    names = [str(number) for number in range(0, RESIDENT, RESIDENT // MIXED)]
    return lambda *inputs: model(*inputs, adapter_names=names * 2)


def deltas_of(name: str) -> Rows:
    """A guided forward pass of four images with a delta beside the base's own."""
    shape = SHAPES[name]
    network = own(shape)
    run = no_grad(network, batch_of(shape, 8))
    rows: Rows = {"base": with_delta(network, None, run, fast=True)}
    for method in ("difffit", "bitfit", "lora", "adaptformer"):
        delta = delta_of(network, method)
        rows[f"{method}, hooks"] = with_delta(network, delta, run, fast=False)
        rows[f"{method}, fast"] = with_delta(network, delta, run, fast=True)
    return rows


def samplings_of(name: str, images: int) -> Rows:
    """Whole samplings of guided images, without what decodes them: diffusers' pipeline has a codec
    of next to nothing.
    """
    shape = SHAPES[name]
    network, reference, pipeline = own(shape), plain(shape, difffit=False), pipeline_of(shape)
    delta, labels = delta_of(network, "difffit"), list(range(images))

    def theirs() -> None:
        pipeline(labels, guidance_scale=GUIDANCE, num_inference_steps=STEPS, output_type="pt")

    run = timed(sampling(network, shape, images))
    return {
        "plain PyTorch": timed(sampling(reference, shape, images)),
        "diffusers, DiTPipeline": timed(theirs),
        "base": with_delta(network, None, run, fast=True),
        "DiffFit, hooks": with_delta(network, delta, run, fast=False),
        "DiffFit, fast": with_delta(network, delta, run, fast=True),
    }


def sampling(
    network: nn.Module, shape: Shape, images: int, steps: int = STEPS, device: str = "cpu"
) -> Callable[[], Tensor]:
    """Latents by DDIM, as sampling/draw.py draws them."""
    process = Diffusion(schedule=Schedule.linear())
    how: dict[str, Any] = {"sampler": "ddim", "steps": steps}
    noise, _, y = (each.to(device) for each in batch_of(shape, images))
    dtype = next(network.parameters()).dtype
    generators = [torch.Generator() for _ in range(images)]

    def run() -> Tensor:
        denoise = guide(lambda x, t, labels: network(x.to(dtype), t, labels), y, CLASSES, GUIDANCE)
        with scheduled(network, process.sampled_times(**how)):
            return process.sample(denoise, noise, generators, **how)

    return run


def pipeline_of(shape: Shape) -> DiTPipeline:
    """diffusers' pipeline of a network of this shape."""
    codec = AutoencoderKL(latent_channels=4, block_out_channels=(4,), norm_num_groups=2)
    pipeline = DiTPipeline(transformer=theirs_of(shape), vae=codec, scheduler=DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def theirs(shape: Shape) -> Callable[..., Tensor]:
    """The network of diffusers, called as ours."""
    network = theirs_of(shape)
    return lambda x, t, y: network(x, timestep=t, class_labels=y).sample


def theirs_of(shape: Shape) -> DiTTransformer2DModel:
    return lively(
        DiTTransformer2DModel(
            num_attention_heads=shape.heads,
            attention_head_dim=shape.width // shape.heads,
            out_channels=8,
            num_layers=shape.depth,
            sample_size=shape.size,
            num_embeds_ada_norm=NULL,
        )
    )
