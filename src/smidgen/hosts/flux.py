"""The host of Flux.1: `FluxTransformer2DModel` of diffusers.

First blocks of two streams, then blocks of one, each with its own adaLN linears. Positions are
rotary and counted from the ids, so that no token can be added. B, C, H, W: the codec's latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.fold import modulation
from smidgen.core.sites import Site
from smidgen.hosts.host import Condition, Family, Host, needed
from smidgen.hosts.packing import grid, pack, unpack
from smidgen.hosts.transformer import (
    SELF_ATTENTION,
    Joint,
    Sheet,
    build_host,
    model_taps,
    model_width,
    named,
    names,
)

PARTS = Joint()
SINGLE = named("attn", SELF_ATTENTION) | {"proj_mlp": "ff1", "proj_out": "o"}


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its modules."""
    width = model_width(model)
    sheet = Sheet(width=width)
    for name in names(model, "transformer_blocks"):
        sheet.add_joint(name, PARTS, tokens=False)
        for stream in ("", "_context"):
            linear = f"{name}.norm1{stream}.linear"
            sheet.modulations |= {
                f"{name}.norm1{stream}.norm": modulation(linear, width, shift=0, scale=1),
                f"{name}.norm2{stream}": modulation(linear, width, shift=3, scale=4),
            }
    for name in names(model, "single_transformer_blocks"):
        leave = Site(name, index=1)
        sheet.add_single(name, norm="norm.norm", projection="proj_out", leave=leave)
        sheet.modulations[f"{name}.norm.norm"] = modulation(
            f"{name}.norm.linear", width, shift=0, scale=1
        )
    sheet.modulations["norm_out.norm"] = modulation("norm_out.linear", width, shift=1, scale=0)
    return build_host(
        model,
        sheet,
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


def encode(pipeline: Any, prompts: Sequence[str], size: int) -> dict[str, Tensor]:
    """The prompts as the pipeline's CLIP (pooled) and T5 see them."""
    text, pooled, _ = pipeline.encode_prompt(list(prompts))
    return {"text": text, "pooled": pooled}


FAMILY = Family(predict=predict, encode=encode, parameterisation="flow", guidance="embedded")
