"""Codec and text encoders under their original names: AutoencoderKL, CLIP, OpenCLIP."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from smidgen.hosts.renaming import Renaming, check_all_used, count_blocks, modules_of, rename

VAE_ATTENTION = {  # ours is the name of today's diffusers; older folders have the second
    "norm": ("group_norm",),
    "q": ("to_q", "query"),
    "k": ("to_k", "key"),
    "v": ("to_v", "value"),
    "proj_out": ("to_out.0", "proj_attn"),
}
VAE_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
OPEN_CLIP_LAYER = {  # original -> transformers; the attention's three linears are one there
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
OPEN_CLIP_ROOT = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def original_vae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An AutoencoderKL under the original code's names, attention as 1x1 convolutions.

    Raises: SmidgenError for a tensor that the original code has not.
    """
    renaming = _vae_renaming(modules_of(state))
    renamed = rename(state, renaming, "the original codec")
    flat = [
        f"{half}.mid.attn_1.{name}.weight"
        for half in ("encoder", "decoder")
        for name in VAE_ATTENTION
    ]
    for key in flat:
        if key in renamed and renamed[key].ndim == 2:
            renamed[key] = renamed[key][:, :, None, None]
    return renamed


def _vae_renaming(names: Collection[str]) -> Renaming:
    modules: dict[str, str] = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        modules |= {f"{half}.{conv}": f"{half}.{conv}" for conv in ("conv_in", "conv_out")}
        modules[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        for number in (0, 1):
            outer, inner = f"{half}.mid.block_{number + 1}", f"{half}.mid_block.resnets.{number}"
            modules |= {f"{outer}.{a}": f"{inner}.{b}" for a, b in VAE_RESIDUAL.items()}
        for outer, candidates in VAE_ATTENTION.items():
            for inner in candidates:
                full = f"{half}.mid_block.attentions.0.{inner}"
                if full in names:
                    modules[f"{half}.mid.attn_1.{outer}"] = full
    decoder = [name.removeprefix("decoder.") for name in names if name.startswith("decoder.")]
    last = count_blocks(decoder, "up_blocks") - 1
    for name in names:
        outer = _vae_block(name, last)
        if outer is not None:
            modules[outer] = name
    return Renaming(modules={outer: (inner,) for outer, inner in modules.items() if inner in names})


def _vae_block(name: str, last: int) -> str | None:
    """The original name of a module inside a block on the way down or up; up counts backwards from
    `last`.
    """
    back = {inner: outer for outer, inner in VAE_RESIDUAL.items()}
    match name.split("."):
        case ["encoder", "down_blocks", block, "resnets", layer, part] if part in back:
            return f"encoder.down.{block}.block.{layer}.{back[part]}"
        case ["encoder", "down_blocks", block, "downsamplers", "0", "conv"]:
            return f"encoder.down.{block}.downsample.conv"
        case ["decoder", "up_blocks", block, "upsamplers", "0", "conv"]:
            return f"decoder.up.{last - int(block)}.upsample.conv"
        case ["decoder", "up_blocks", block, "resnets", layer, part] if part in back:
            return f"decoder.up.{last - int(block)}.block.{layer}.{back[part]}"
    return None


def bare_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text model without the prefix `text_model.` that only some versions of transformers
    write, and without the position numbers that old ones stored.
    """
    bare = {key.removeprefix("text_model."): tensor for key, tensor in state.items()}
    bare.pop("embeddings.position_ids", None)
    return bare


def original_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text model under the names with `text_model.` that original files have."""
    return {
        key if key == "text_projection.weight" else f"text_model.{key}": tensor
        for key, tensor in bare_clip(state).items()
    }


def original_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text model under OpenCLIP's names, which stack queries, keys and values.

    Raises: SmidgenError for a tensor that OpenCLIP has not.
    """
    bare = bare_clip(state)
    renamed: dict[str, Tensor] = {}
    used: set[str] = set()

    def take(inner: str) -> Tensor:
        used.add(inner)
        return bare[inner]

    for outer, inner in OPEN_CLIP_ROOT.items():
        renamed[outer] = take(inner)
    if "text_projection.weight" in bare:
        renamed["text_projection"] = take("text_projection.weight").T.contiguous()
    inside = [name.removeprefix("encoder.") for name in modules_of(bare)]
    for index in range(count_blocks(inside, "layers")):
        block, layer = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
        for end in ("weight", "bias"):
            for outer, inner in OPEN_CLIP_LAYER.items():
                renamed[f"{block}.{outer}.{end}"] = take(f"{layer}.{inner}.{end}")
            parts = [take(f"{layer}.self_attn.{letter}_proj.{end}") for letter in "qkv"]
            renamed[f"{block}.attn.in_proj_{end}"] = torch.cat(parts)
    check_all_used(bare, used, "OpenCLIP")
    return renamed
