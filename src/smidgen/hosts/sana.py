"""The family of Sana: `SanaTransformer2DModel` of diffusers.

Linear self-attention, cross-attention without a norm, and a feed-forward of convolutions on
(B, C, H, W). All blocks share the one adaLN linear of `time_embed`; what they add to it, their
`scale_shift_table`, is no module's output.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smidgen.core.sites import Site
from smidgen.errors import SmidgenError
from smidgen.hosts.family import Condition, Family, Pipeline, needed
from smidgen.hosts.host import Host
from smidgen.hosts.transformer import NUM_TIMESTEPS, SELF_ATTENTION, Sheet, model_taps, named
from smidgen.sizes import ImageSize

ROLES = (
    named("attn1", SELF_ATTENTION)
    | named("attn2", SELF_ATTENTION, "cross.")
    | {"ff.conv_inverted": "ff1", "ff.conv_point": "ff2"}
)

INSTRUCTION = "complex_human_instruction"


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its modules."""
    config: Any = model.config
    sheet = Sheet(model=model)
    for name in sheet.names("transformer_blocks"):
        to_k: Any = model.get_submodule(f"{name}.attn2.to_k")
        ff = Site(f"{name}.ff", axis=1)
        sheet.add_cross(name, ff=ff, last="conv_point", context=to_k.in_features, tokens=False)
    embedder = "time_embed" if config.guidance_embeds else "time_embed.emb"
    return sheet.host(
        family="sana",
        taps=model_taps(
            Site("patch_embed.proj", axis=1),
            f"{embedder}.timestep_embedder.linear_2",
            "norm_out.norm",
        ),
        roles=ROLES,
        refusals={"vpt": "Sana's feed-forward lays the tokens out as rows and columns"},
        shared="Sana's blocks share one adaLN linear, which cannot take up the affine of one",
    )


def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The velocity, noise - x_0, of latents (B, C, H, W) at sigmas (B,).

    Raises: SmidgenError for Sana Sprint, which predicts something else.
    """
    config: Any = network.config
    if config.guidance_embeds:
        raise SmidgenError(
            "Sana Sprint predicts no velocity, so it neither trains nor samples here; "
            "give a Sana base without guidance_embeds"
        )
    return network(
        x_t,
        encoder_hidden_states=needed(condition, "text", "sana"),
        encoder_attention_mask=condition.get("mask"),
        timestep=t * NUM_TIMESTEPS * config.timestep_scale,
        return_dict=False,
    )[0]


def encode(pipeline: Any, prompts: Sequence[str], size: ImageSize) -> dict[str, Tensor]:
    """The prompts as the pipeline's Gemma sees them: with the instruction that the pipeline puts
    before a prompt, but for the empty one, which it encodes as it is.
    """
    instruction = inspect.signature(type(pipeline).__call__).parameters[INSTRUCTION].default
    rows: dict[int, tuple[Tensor, Tensor]] = {}
    for empty in (False, True):
        chosen = [index for index, prompt in enumerate(prompts) if (prompt == "") is empty]
        if chosen:
            text, mask, _, _ = pipeline.encode_prompt(
                [prompts[index] for index in chosen],
                do_classifier_free_guidance=False,
                complex_human_instruction=None if empty else instruction,
            )
            rows |= zip(chosen, zip(text, mask, strict=True), strict=True)
    texts, masks = zip(*(rows[index] for index in range(len(prompts))), strict=True)
    return {"text": torch.stack(texts), "mask": torch.stack(masks)}


FAMILY = Family(
    predict=predict,
    encode=encode,
    parameterisation="flow",
    condition_shapes=lambda config: {"text": (300, config["caption_channels"])},
    pipelines={"SanaPipeline": Pipeline()},
)
