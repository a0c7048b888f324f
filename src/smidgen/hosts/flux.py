"""The family of Flux.1: `FluxTransformer2DModel` of diffusers.

First blocks of two streams, then blocks of one, each with its own adaLN linears. Positions are
rotary and counted from the ids, so that no token can be added. B, C, H, W: the codec's latents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.fold import modulation
from smidgen.core.sites import Site
from smidgen.hosts.family import (
    TWO_ENCODERS,
    TWO_TOKENIZERS,
    Condition,
    Family,
    Original,
    Pipeline,
    latent_shape_of,
    needed,
)
from smidgen.hosts.host import Host
from smidgen.hosts.packing import grid, pack, unpack
from smidgen.hosts.renaming import FINAL_MODULATION, Renaming, added_qkv, count_blocks, qkv
from smidgen.hosts.transformer import SELF_ATTENTION, Joint, Sheet, model_taps, named
from smidgen.sizes import ImageSize

PARTS = Joint()
SINGLE = named("attn", SELF_ATTENTION) | {"proj_mlp": "ff1", "proj_out": "o"}
ORIGINAL_ROOT = {
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "txt_in": "context_embedder",
    "img_in": "x_embedder",
    "final_layer.linear": "proj_out",
    FINAL_MODULATION: "norm_out.linear",
}


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its modules."""
    sheet = Sheet(model=model)
    width = sheet.width
    for name in sheet.names("transformer_blocks"):
        sheet.add_joint(name, PARTS, tokens=False)
        for stream in ("", "_context"):
            linear = f"{name}.norm1{stream}.linear"
            sheet.modulations |= {
                f"{name}.norm1{stream}.norm": modulation(linear, width, shift=0, scale=1),
                f"{name}.norm2{stream}": modulation(linear, width, shift=3, scale=4),
            }
    for name in sheet.names("single_transformer_blocks"):
        leave = Site(name, index=1)
        sheet.add_single(name, norm="norm.norm", projection="proj_out", leave=leave)
        sheet.modulations[f"{name}.norm.norm"] = modulation(
            f"{name}.norm.linear", width, shift=0, scale=1
        )
    sheet.modulations["norm_out.norm"] = modulation("norm_out.linear", width, shift=1, scale=0)
    return sheet.host(
        family="flux",
        taps=model_taps(
            Site("x_embedder"), "time_text_embed.timestep_embedder.linear_2", "norm_out.norm"
        ),
        roles=PARTS.roles() | SINGLE,
        refusals={"vpt": "Flux's rotary embedding has a fixed length"},
        shared="no linear of Flux modulates this norm",
    )


def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The velocity, noise - x_0, of latents (B, C, H, W) at sigmas (B,). `guidance` (B,) is the
    scale that the distilled variant has as an input.
    """
    model: Any = network
    height, width = x_t.shape[-2:]
    text = needed(condition, "text", "flux")
    tokens = network(
        hidden_states=pack(x_t),
        encoder_hidden_states=text,
        pooled_projections=needed(condition, "pooled", "flux"),
        timestep=t,
        img_ids=grid(1, height // 2, width // 2, device=x_t.device),
        txt_ids=torch.zeros(text.shape[1], 3, dtype=torch.long, device=x_t.device),
        guidance=needed(condition, "guidance", "flux") if model.config.guidance_embeds else None,
        return_dict=False,
    )[0]
    return unpack(tokens, height, width)


def encode(pipeline: Any, prompts: Sequence[str], size: ImageSize) -> dict[str, Tensor]:
    """The prompts as the pipeline's CLIP (pooled) and T5 see them."""
    text, pooled, _ = pipeline.encode_prompt(list(prompts))
    return {"text": text, "pooled": pooled}


def original_names(modules: Collection[str]) -> Renaming:
    """What the original code calls these modules of a network."""
    found: dict[str, tuple[str, ...]] = {outer: (inner,) for outer, inner in ORIGINAL_ROOT.items()}
    tensors: dict[str, str] = {}
    for index in range(count_blocks(modules, "transformer_blocks")):
        outer, inner = f"double_blocks.{index}", f"transformer_blocks.{index}"
        found |= dict(_original_double(outer, inner))
        for stream, norm in (("img", "norm"), ("txt", "norm_added")):
            for whole, letter in (("query", "q"), ("key", "k")):
                scale = f"{outer}.{stream}_attn.norm.{whole}_norm.scale"
                tensors[scale] = f"{inner}.attn.{norm}_{letter}.weight"
    for index in range(count_blocks(modules, "single_transformer_blocks")):
        outer, inner = f"single_blocks.{index}", f"single_transformer_blocks.{index}"
        found[f"{outer}.linear1"] = (*qkv(f"{inner}.attn"), f"{inner}.proj_mlp")
        found[f"{outer}.linear2"] = (f"{inner}.proj_out",)
        found[f"{outer}.modulation.lin"] = (f"{inner}.norm.linear",)
        for whole, letter in (("query", "q"), ("key", "k")):
            tensors[f"{outer}.norm.{whole}_norm.scale"] = f"{inner}.attn.norm_{letter}.weight"
    return Renaming(modules=found, swapped=frozenset({FINAL_MODULATION}), tensors=tensors)


def _original_double(outer: str, inner: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{outer}.img_attn.qkv", qkv(f"{inner}.attn")
    yield f"{outer}.txt_attn.qkv", added_qkv(f"{inner}.attn")
    yield f"{outer}.img_attn.proj", (f"{inner}.attn.to_out.0",)
    yield f"{outer}.txt_attn.proj", (f"{inner}.attn.to_add_out",)
    for stream, suffix in (("img", ""), ("txt", "_context")):
        yield f"{outer}.{stream}_mod.lin", (f"{inner}.norm1{suffix}.linear",)
        yield f"{outer}.{stream}_mlp.0", (f"{inner}.ff{suffix}.net.0.proj",)
        yield f"{outer}.{stream}_mlp.2", (f"{inner}.ff{suffix}.net.2",)


def architecture(config: Any, predicts_v: bool) -> str | None:
    """The name that kohya's trainer writes."""
    if config.num_layers != 19:
        return None
    return "flux-1-dev" if config.guidance_embeds else "flux-1-schnell"


FAMILY = Family(
    predict=predict,
    encode=encode,
    parameterisation="flow",
    guidance="embedded",
    latent_shape=partial(latent_shape_of, packed=4),
    condition_shapes=lambda config: {
        "text": (512, config["joint_attention_dim"]),
        "pooled": (config["pooled_projection_dim"],),
    },
    pipelines={
        "FluxPipeline": Pipeline(
            tokenizers=TWO_TOKENIZERS, encoders=TWO_ENCODERS, patch=2, even_to_fraction=True
        )
    },
    original=Original(models="Flux", names=original_names, codec="vae."),
    code="https://github.com/black-forest-labs/flux",
    architecture=architecture,
)
