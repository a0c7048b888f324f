"""The family of Stable Diffusion 3 and 3.5: `SD3Transformer2DModel` of diffusers.

Every block has its own adaLN linears, six chunks each as in DiT; nine where the block has a second
attention of the image to itself (`attn2`, SD 3.5 medium). The text's stream ends in the last block.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

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
    needed,
)
from smidgen.hosts.host import Host
from smidgen.hosts.renaming import FINAL_MODULATION, Renaming, added_qkv, count_blocks, qkv
from smidgen.hosts.transformer import NUM_TIMESTEPS, SELF_ATTENTION, Joint, Sheet, model_taps, named
from smidgen.sizes import ImageSize

PARTS = Joint()
THIRD = ("tokenizer_3", "text_encoder_3")  # T5, which most do without
ORIGINAL_ROOT = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.linear": "proj_out",
    FINAL_MODULATION: "norm_out.linear",
}


def host(model: nn.Module) -> Host:
    """The sites of `model`; reads its configuration and the shapes of its modules."""
    sheet = Sheet(model=model)
    width = sheet.width
    for name in sheet.names("transformer_blocks"):
        block: Any = model.get_submodule(name)
        sheet.add_joint(name, PARTS, text=not block.context_pre_only, tokens=True)
        _add_modulations(sheet, name, block)
    sheet.modulations["norm_out.norm"] = modulation("norm_out.linear", width, shift=1, scale=0)
    return sheet.host(
        family="sd3",
        taps=model_taps(
            Site("pos_embed.proj", axis=1),
            "time_text_embed.timestep_embedder.linear_2",
            "norm_out.norm",
        ),
        roles=PARTS.roles() | named("attn2", SELF_ATTENTION),
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


def encode(pipeline: Any, prompts: Sequence[str], size: ImageSize) -> dict[str, Tensor]:
    """The prompts as the pipeline's two CLIPs and its T5 see them."""
    text, _, pooled, _ = pipeline.encode_prompt(
        list(prompts), None, None, do_classifier_free_guidance=False
    )
    return {"text": text, "pooled": pooled}


def original_names(modules: Collection[str]) -> Renaming:
    """What the original code calls these modules of a network."""
    depth = count_blocks(modules, "transformer_blocks")
    found: dict[str, tuple[str, ...]] = {outer: (inner,) for outer, inner in ORIGINAL_ROOT.items()}
    for index in range(depth):
        found |= dict(_original_block(f"joint_blocks.{index}", f"transformer_blocks.{index}"))
    # the text's stream ends in the last block, and its modulation is as that of the final layer
    last = f"joint_blocks.{depth - 1}.context_block.adaLN_modulation.1"
    return Renaming(
        modules=found,
        swapped=frozenset({last, FINAL_MODULATION}),
        tensors={"pos_embed": "pos_embed.pos_embed"},
    )


def _original_block(outer: str, inner: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    image, text = f"{outer}.x_block", f"{outer}.context_block"
    for attention in ("attn", "attn2"):
        yield f"{image}.{attention}.qkv", qkv(f"{inner}.{attention}")
        yield f"{image}.{attention}.proj", (f"{inner}.{attention}.to_out.0",)
        yield f"{image}.{attention}.ln_q", (f"{inner}.{attention}.norm_q",)
        yield f"{image}.{attention}.ln_k", (f"{inner}.{attention}.norm_k",)
    yield f"{text}.attn.qkv", added_qkv(f"{inner}.attn")
    yield f"{text}.attn.proj", (f"{inner}.attn.to_add_out",)
    yield f"{text}.attn.ln_q", (f"{inner}.attn.norm_added_q",)
    yield f"{text}.attn.ln_k", (f"{inner}.attn.norm_added_k",)
    for stream, suffix in ((image, ""), (text, "_context")):
        yield f"{stream}.adaLN_modulation.1", (f"{inner}.norm1{suffix}.linear",)
        yield f"{stream}.mlp.fc1", (f"{inner}.ff{suffix}.net.0.proj",)
        yield f"{stream}.mlp.fc2", (f"{inner}.ff{suffix}.net.2",)


def architecture(config: Any, predicts_v: bool) -> str | None:
    """The name in ModelSpec, by the layers."""
    if config.dual_attention_layers:
        return "stable-diffusion-3-5-medium"
    return {24: "stable-diffusion-3-m", 38: "stable-diffusion-3-5-large"}.get(config.num_layers)


FAMILY = Family(
    predict=predict,
    encode=encode,
    parameterisation="flow",
    condition_shapes=lambda config: {
        "text": (333, config["joint_attention_dim"]),  # 77 of CLIP, 256 of T5
        "pooled": (config["pooled_projection_dim"],),
    },
    pipelines={
        "StableDiffusion3Pipeline": Pipeline(
            tokenizers=(*TWO_TOKENIZERS, THIRD[0]),
            encoders=(*TWO_ENCODERS, THIRD[1]),
            optional=THIRD,
            patch=2,
            most_tokens=lambda config: config.get("pos_embed_max_size"),
        )
    },
    original=Original(models="SD3", names=original_names, codec="first_stage_model."),
    code="https://github.com/Stability-AI/sd3.5",
    architecture=architecture,
)
