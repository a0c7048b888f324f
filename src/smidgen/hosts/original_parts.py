"""Codec and text encoders under their original names: AutoencoderKL, CLIP, OpenCLIP."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smidgen.hosts.renaming import (
    Renaming,
    check_all_used,
    count_blocks,
    modules_of,
    rename,
    restore,
)

VAE_ATTENTION = {  # diffusers -> original; older folders have the second of two
    "group_norm": "norm",
    "to_q": "q",
    "query": "q",
    "to_k": "k",
    "key": "k",
    "to_v": "v",
    "value": "v",
    "to_out.0": "proj_out",
    "proj_attn": "proj_out",
}
VAE_RESIDUAL = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "conv_shortcut": "nin_shortcut",
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
    renamed = rename(state, vae_renaming(modules_of(state)), "the original codec")
    for key, tensor in renamed.items():
        if tensor.ndim == 2 and key.split(".")[1:3] == ["mid", "attn_1"]:
            renamed[key] = tensor[:, :, None, None]
    return renamed


def vae_renaming(names: Collection[str]) -> Renaming:
    """What the original code calls these modules of an AutoencoderKL."""
    last = count_blocks(names, "decoder.up_blocks") - 1
    found = {outer: (name,) for name in names if (outer := _vae_name(name, last)) is not None}
    return Renaming(modules=found)


def _vae_name(name: str, last: int) -> str | None:
    """The original name of a module of the codec; blocks on the way up count back from `last`."""
    match name.split("."):
        case ["quant_conv" | "post_quant_conv"] | ["encoder" | "decoder", "conv_in" | "conv_out"]:
            return name
        case ["encoder" | "decoder" as half, "conv_norm_out"]:
            return f"{half}.norm_out"
        case ["encoder" | "decoder" as half, "mid_block", "resnets", "0" | "1" as layer, part]:
            place = f"{half}.mid.block_{int(layer) + 1}"
        case ["encoder" | "decoder" as half, "mid_block", "attentions", "0", *rest]:
            outer = VAE_ATTENTION.get(".".join(rest))
            return outer and f"{half}.mid.attn_1.{outer}"
        case ["encoder", "down_blocks", block, "downsamplers", "0", "conv"]:
            return f"encoder.down.{block}.downsample.conv"
        case ["decoder", "up_blocks", block, "upsamplers", "0", "conv"]:
            return f"decoder.up.{last - int(block)}.upsample.conv"
        case ["encoder", "down_blocks", block, "resnets", layer, part]:
            place = f"encoder.down.{block}.block.{layer}"
        case ["decoder", "up_blocks", block, "resnets", layer, part]:
            place = f"decoder.up.{last - int(block)}.block.{layer}"
        case _:
            return None
    return f"{place}.{VAE_RESIDUAL[part]}" if part in VAE_RESIDUAL else None


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


def read_clip(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The reverse of `original_clip`, also of files from before the prefix `text_model.`.

    Raises: SmidgenError as `restore`.
    """
    bare = bare_clip(state)
    tensors = {name.removeprefix("text_model."): name for name in shapes}
    return restore(bare, Renaming(modules={}, tensors=tensors), shapes, "the original CLIP")


def read_open_clip(
    state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The reverse of `original_open_clip`; of its layers those that `shapes` has.

    Raises: SmidgenError as `restore`.
    """
    state = {key.replace(".in_proj_", ".in_proj."): tensor for key, tensor in state.items()}
    if "text_projection" in state:
        state["text_projection"] = state["text_projection"].T.contiguous()
    prefix = "text_model."
    modules: dict[str, tuple[str, ...]] = {}
    for index in range(count_blocks(modules_of(shapes), f"{prefix}encoder.layers")):
        block, layer = f"transformer.resblocks.{index}", f"{prefix}encoder.layers.{index}"
        for outer, inner in OPEN_CLIP_LAYER.items():
            modules[f"{block}.{outer}"] = (f"{layer}.{inner}",)
        parts = tuple(f"{layer}.self_attn.{letter}_proj" for letter in "qkv")
        modules[f"{block}.attn.in_proj"] = parts
    tensors = {outer: f"{prefix}{inner}" for outer, inner in OPEN_CLIP_ROOT.items()}
    tensors["text_projection"] = "text_projection.weight"
    return restore(state, Renaming(modules=modules, tensors=tensors), shapes, "OpenCLIP")


def clip_shapes(config: Mapping[str, Any], *, projected: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of a CLIP text model of this configuration as files of transformers name them."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (config["vocab_size"], width),
        "embeddings.position_embedding.weight": (config["max_position_embeddings"], width),
    }
    sizes = {"layer_norm1": (width,), "layer_norm2": (width,)}
    sizes |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    sizes |= {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    modules = {
        f"encoder.layers.{index}.{name}": size
        for index in range(config["num_hidden_layers"])
        for name, size in sizes.items()
    }
    for name, size in (modules | {"final_layer_norm": (width,)}).items():
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    shapes = {f"text_model.{name}": shape for name, shape in shapes.items()}
    if projected:
        shapes["text_projection.weight"] = (config["projection_dim"], width)
    return shapes


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
    for index in range(count_blocks(modules_of(bare), "encoder.layers")):
        block, layer = f"transformer.resblocks.{index}", f"encoder.layers.{index}"
        for end in ("weight", "bias"):
            for outer, inner in OPEN_CLIP_LAYER.items():
                renamed[f"{block}.{outer}.{end}"] = take(f"{layer}.{inner}.{end}")
            parts = [take(f"{layer}.self_attn.{letter}_proj.{end}") for letter in "qkv"]
            renamed[f"{block}.attn.in_proj_{end}"] = torch.cat(parts)
    check_all_used(bare, used, "OpenCLIP")
    return renamed
