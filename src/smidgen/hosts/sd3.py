"""The host of Stable Diffusion 3 and 3.5: `SD3Transformer2DModel` of diffusers.

Every block has its own adaLN linears, six chunks each as in DiT; nine where the block has a second
attention of the image to itself (`attn2`, SD 3.5 medium). The text's stream ends in the last block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from smidgen.core.fold import modulation
from smidgen.core.sites import Site
from smidgen.hosts.host import Condition, Family, Host, needed
from smidgen.hosts.transformer import (
    NUM_TIMESTEPS,
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


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its modules."""
    width = model_width(model)
    sheet = Sheet(width=width)
    for name in names(model, "transformer_blocks"):
        block: Any = model.get_submodule(name)
        sheet.add_joint(name, PARTS, text=not block.context_pre_only, tokens=True)
        _add_modulations(sheet, name, block)
    sheet.modulations["norm_out.norm"] = modulation("norm_out.linear", width, shift=1, scale=0)
    return build_host(
        model,
        sheet,
        family="sd3",
        taps=model_taps(
            Site("pos_embed.proj", axis=1),
            "time_text_embed.timestep_embedder.linear_2",
            "norm_out.norm",
        ),
        roles=PARTS.roles() | named("attn2", SELF_ATTENTION),
        refusals={},
        shared="this norm of SD 3.5 feeds two modulations; a created affine would go into both",
    )


def _add_modulations(sheet: Sheet, name: str, block: Any) -> None:
    image, text, width = f"{name}.norm1.linear", f"{name}.norm1_context.linear", sheet.width
    if not block.use_dual_attention:
        sheet.modulations[f"{name}.norm1.norm"] = modulation(image, width, shift=0, scale=1)
    sheet.modulations[f"{name}.norm2"] = modulation(image, width, shift=3, scale=4)
    last = block.context_pre_only  # its text norm is of another class, which has the scale first
    shift, scale = (1, 0) if last else (0, 1)
    sheet.modulations[f"{name}.norm1_context.norm"] = modulation(
        text, width, shift=shift, scale=scale
    )
    sheet.modulations[f"{name}.norm2_context"] = modulation(text, width, shift=3, scale=4)


def predict(network: nn.Module, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The velocity, noise - x_0, of latents (B, C, H, W) at sigmas (B,)."""
    return network(
        hidden_states=x_t,
        encoder_hidden_states=needed(condition, "text", "sd3"),
        pooled_projections=needed(condition, "pooled", "sd3"),
        timestep=t * NUM_TIMESTEPS,
        return_dict=False,
    )[0]


def encode(pipeline: Any, prompts: Sequence[str], size: int) -> dict[str, Tensor]:
    """The prompts as the pipeline's two CLIPs and its T5 see them."""
    text, _, pooled, _ = pipeline.encode_prompt(
        list(prompts), None, None, do_classifier_free_guidance=False
    )
    return {"text": text, "pooled": pooled}


FAMILY = Family(predict=predict, encode=encode, parameterisation="flow", guidance="classifier-free")
